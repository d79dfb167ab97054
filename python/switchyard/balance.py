"""Balancing for anybody's training loop: counts in, gradients out, whatever the scope.

The life of a step:

    loss = switchyard.BalanceLoss(num_experts=E, num_layers=L, scope="optimizer_batch", coefficient=1e-2,
                                  contract=switchyard.Contract(micro_batches="mean", ranks="mean"))
    loss.begin_step([tokens of each sequence, for each micro-batch of this rank])
    for each micro-batch m:            # and before that, under torch.no_grad(), as a pre-pass
        loss.begin_forward(switchyard.segments_of_mask(attention_mask), micro_batch=m)
        in each MoE layer l:
            probs = loss.through(l, probs)      # identity; its backward adds c[l, segment, e]
            loss.record(l, ids, probs)          # idempotent by (step, micro-batch, layer)
        loss.close_forward()           # coefficients that are known now are filled in
    loss.close_counting()              # after the last forward: the rest
    ... backward of each forward, after its coefficients are filled ...
    report = loss.close_step()         # values, and the counts become the previous step

A backward that reaches an unfilled coefficient is an error on the CPU and gives NaN gradients elsewhere, never silence.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Optional

import torch
from torch import Tensor

from .config import BalanceConfig, Contract, LayerReduction, Scope, Weighting
from .errors import ConfigError, ShapeError, StateError, SwitchyardError, UsageError
from .frame import Frame, fractions, wide_type
from .ops import Path, choose_ops
from .plan import StepPlan, checked_plan
from .planned_step import PlannedStep
from .ranks import Ranks
from .steps import OpenStep, Step


def segments_of_mask(mask_BS: Tensor) -> Tensor:
    """Segments of a padded batch: row number where the mask is not 0, else -1. int64, of the mask's shape."""
    rows_B1 = torch.arange(mask_BS.shape[0], device=mask_BS.device).unsqueeze(1)
    return torch.where(mask_BS != 0, rows_B1, -1)


@dataclasses.dataclass(frozen=True)
class StepReport:
    """Values of a finished step, over all ranks. Raw: 1 is uniform, lambda not applied."""

    step: int
    scope: str
    tokens: int  # valid
    lbl_L: list[float]  # at the scope, per MoE layer; empty where there is none
    z_loss_L: list[float]
    weighted_loss: float  # what was added to the training loss
    counts_LE: Tensor  # int64, requested slots of the whole step
    micro_batch_counts_MLE: Tensor  # int64, of this rank
    differences: int  # entries that a repeated forward counted differently; an error unless on_recount="report"

    def max_vio(self) -> float:
        """Largest count over the mean count, minus 1, mean over layers. Counts of the whole step."""
        shares_LE = self.counts_LE.double() / self.counts_LE.sum(1, keepdim=True).clamp_min(1)
        return float((shares_LE.amax(1) * shares_LE.shape[1] - 1).clamp_min(0.0).mean())  # 0 where nothing was counted


class BalanceLoss:
    """A load-balancing loss of E experts in L layers, with a scope, for one training run.

    @param scope          over which tokens experts are counted, one of switchyard.SCOPES
    @param coefficient    lambda
    @param contract       who averages gradients over micro-batches and ranks
    @param weighting      how group losses are averaged: by tokens, or plainly
    @param layers         losses of the layers are averaged, or added
    @param process_group  ranks among which tokens are divided; None: all of torch.distributed, where initialised
    @param ops            "auto", "compiled" or "composite"
    @param on_recount     whether a forward that counts differently when run again is an error, or only reported
    """

    def __init__(self, *, num_experts: int, num_layers: int, scope: str, coefficient: float, contract: Contract,
                 z_coefficient: float = 0.0, weighting: Weighting = "tokens", layers: LayerReduction = "mean",
                 process_group: Optional[Any] = None, device: torch.device | str = "cpu", ops: Path = "auto",
                 on_recount: Literal["error", "report"] = "error"):
        self.config = BalanceConfig(num_experts, num_layers, Scope.parse(scope), coefficient, z_coefficient, weighting, layers,
                                    contract)
        if on_recount not in ("error", "report"):
            raise ConfigError(f"on_recount='{on_recount}'; expected 'error' or 'report'")
        self.device = torch.device(device)
        self.ranks = Ranks(process_group)
        self.frame: Optional[Frame] = None
        self.step_number = 0
        self._ops = choose_ops(ops, self.device)
        self._on_recount = on_recount
        self._step: Optional[Step] = None
        self._previous_counts_LE: Optional[Tensor] = None
        self._ema_fractions_LE: Optional[Tensor] = None

    # The step.

    def begin_step(self, micro_batches: Optional[Sequence[Sequence[int]]] = None) -> None:
        """Begins an optimizer step. Collective.

        @param micro_batches  valid tokens of each segment of each micro-batch of this rank. None: the step is not known ahead;
                              each micro-batch's loss is then averaged as the caller averages the micro-batches.
        Raises ConfigError for a scope that cannot do without.
        """
        if self._step is not None:
            raise StateError(f"step {self.step_number}: begin_step() before close_step() of the step before; after a step that "
                             "failed call abandon_step()")
        self.ranks.look_again()
        own_plan, error = self._own_plan(micro_batches)
        self._check_same_on_ranks("a plan" if micro_batches is not None else "no plan", error)
        earlier_LE = self._earlier_fractions()
        if own_plan is None:
            self._step = OpenStep(self.config, self.ranks, self.step_number, earlier_LE, self.device)
        else:
            plan = StepPlan(self.ranks.gather_plans(own_plan, self.device))
            self._step = PlannedStep(self.config, self.ranks, self.step_number, earlier_LE, self.device, plan)

    @property
    def in_step(self) -> bool:
        return self._step is not None

    @property
    def num_forwards(self) -> int:
        """Forwards of the step that were begun so far."""
        return 0 if self._step is None else self._step.next_micro_batch

    @property
    def lacks_history(self) -> bool:
        """True where f comes from earlier steps and there are none: this step has no balancing loss."""
        return self.config.scope.from_earlier_steps and self._earlier_fractions() is None

    @property
    def needs_whole_step(self) -> bool:
        """Whether backward of some micro-batch must wait for the counts of later ones. Valid within a step."""
        return self._current_step("needs_whole_step").needs_whole_step

    def begin_forward(self, segments: Tensor, *, micro_batch: Optional[int] = None, num_segments: Optional[int] = None,
                      share: Optional[Tensor] = None) -> Frame:
        """Begins the forward of a micro-batch, or begins it again.

        @param segments      int64, one entry per token in the order of the router's tokens: the segment within the
                             micro-batch, -1 for padding. `segments_of_mask` makes it from a mask.
        @param micro_batch   from 0; None: the next one
        @param num_segments  without a plan, S; None: the rows of `segments`, which must then be [B, S]
        @param share         without a plan: weight of this micro-batch where the caller's loss carries its own, such as the
                             share of scored tokens; nobody else divides then
        """
        step = self._current_step("begin_forward()")
        number = step.next_micro_batch if micro_batch is None else micro_batch
        if num_segments is None and segments.dim() == 2:
            num_segments = segments.shape[0]
        self.frame = step.begin(self._ops, number, segments, num_segments, share)
        return self.frame

    def through(self, layer: int, probs: Tensor, carrier: Optional[Tensor] = None) -> Tensor:
        """Frame.through of the current forward. Without one: an error, or nothing at all under torch.no_grad()."""
        frame = self._current_frame()
        if frame is None:
            return probs if carrier is None else carrier
        return frame.through(layer, probs, carrier)

    def through_logits(self, layer: int, logits: Tensor, carrier: Optional[Tensor] = None) -> Tensor:
        frame = self._current_frame()
        if frame is None:
            return logits if carrier is None else carrier
        return frame.through_logits(layer, logits, carrier)

    def record(self, layer: int, ids: Tensor, probs: Optional[Tensor] = None) -> None:
        frame = self._current_frame()
        if frame is not None:
            frame.record(layer, ids, probs)

    def join(self, loss: Tensor, factor: float = 1.0) -> Tensor:
        """Frame.join of the current forward."""
        frame = self._current_frame()
        return loss if frame is None else frame.join(loss, factor)

    def close_forward(self) -> None:
        """After the last layer of a forward. Collective for scopes that count over ranks. Repeats change nothing."""
        step = self._current_step("close_forward()")
        if self.frame is None:
            raise StateError(f"step {self.step_number}: close_forward() without begin_forward()")
        step.close(self.frame)

    def close_counting(self) -> None:
        """After the last forward was closed. Collective."""
        self._current_step("close_counting()").close_counting()

    def close_step(self) -> StepReport:
        """Ends the step after its last backward. Collective. The counts become those of the previous step.

        Raises StateError, on every rank, where a forward of one could not be balanced or, run again, counted differently;
        it names step, micro-batch and layer.
        """
        step = self._current_step("close_step()")
        step.close_counting()
        self._check_forwards(step)
        report = self._report(step)
        self._step, self.frame = None, None
        self.step_number += 1
        if report.tokens > 0:
            self._remember(report.counts_LE.clone())  # the report is the caller's
        return report

    def change(self, *, scope: Optional[str] = None, coefficient: Optional[float] = None) -> None:
        """Switches scope or coefficient between two steps, on every rank. `ema` begins without a past."""
        if self._step is not None:
            raise StateError(f"step {self.step_number}: change() within a step; call it after close_step()")
        self.config = dataclasses.replace(
            self.config, scope=self.config.scope if scope is None else Scope.parse(scope),
            coefficient=self.config.coefficient if coefficient is None else coefficient)
        if scope is not None:
            self._ema_fractions_LE = None

    def discard_failed(self) -> None:
        """Forgets a forward of a step without a plan that was begun and not closed, for it failed: its number is used again.

        Raises StateError on several ranks: the others may have added theirs up, so forwards would be counted in wrong pairs.
        """
        if self._step is None or not self._step.unclosed():
            return
        if self.ranks.size > 1:
            raise StateError(f"{self._step.place(self._step.unclosed()[0])}: its forward was begun and not closed; it seems to "
                             "have failed. Call abandon_step() of the loss (attachment.loss.abandon_step()) on every rank, and "
                             "begin the step again")
        self._step.discard_unclosed()
        self.frame = None

    def abandon_step(self) -> None:
        """Forgets a step that failed, so that another may begin."""
        self._step, self.frame = None, None

    def forget(self) -> None:
        """Back to the first step: nothing of earlier steps is left. On every rank."""
        self.abandon_step()
        self.step_number, self._previous_counts_LE, self._ema_fractions_LE = 0, None, None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it forwards leave no trace: for an evaluation in the middle of a step. Run it under torch.no_grad()."""
        frame, step, self.frame = self.frame, self._step, None
        try:
            yield
        finally:
            self.frame = frame if self._step is step else None  # its step may have ended meanwhile

    # State from step to step.

    def state_dict(self) -> dict[str, Any]:
        """What lasts from step to step. Raises StateError within a step: half a step's counts are not saved."""
        if self._step is not None:
            raise StateError(f"step {self.step_number}: state_dict() within a step; call it after close_step()")
        return {"step": self.step_number, "scope": str(self.config.scope), "previous_counts_LE": self._previous_counts_LE,
                "ema_fractions_LE": self._ema_fractions_LE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._step is not None:
            raise StateError(f"step {self.step_number}: load_state_dict() within a step; call it between steps, after close_step() or "
                             "abandon_step()")
        shape = (self.config.num_layers, self.config.num_experts)
        for name, dtype in (("previous_counts_LE", torch.int64), ("ema_fractions_LE", wide_type(self.device))):
            kept_LE = state[name]
            if kept_LE is not None and (tuple(kept_LE.shape) != shape or kept_LE.dtype != dtype):
                raise ShapeError(f"balance state: {name} is {kept_LE.dtype} {list(kept_LE.shape)}; expected {dtype} "
                                 f"{list(shape)}")
        if self.config.scope.kind == "ema" and state["scope"] != str(self.config.scope):
            raise ConfigError(f"balance state is of scope '{state['scope']}', this loss of '{self.config.scope}'")
        self.step_number = int(state["step"])
        self._previous_counts_LE = _copy_to(state["previous_counts_LE"], self.device)
        self._ema_fractions_LE = _copy_to(state["ema_fractions_LE"], self.device)

    # Inside.

    def _own_plan(self, micro_batches: Any) -> tuple[Optional[list[list[int]]], Optional[SwitchyardError]]:
        """The plan as plain numbers, or what is wrong with it: to be raised when the other ranks know."""
        try:
            if micro_batches is not None:
                return checked_plan(micro_batches), None
            self.config.check_open()
            return None, None
        except SwitchyardError as error:
            return None, error

    def _check_same_on_ranks(self, kind_of_step: str, own_error: Optional[SwitchyardError]) -> None:
        """Collective. Sums over ranks need equal shapes and order: a rank that differs would make the others wait for ever. One
        with another past would train towards another loss."""
        found = []
        if self.ranks.size > 1:
            settings = zlib.crc32(f"{self.config}, {self._on_recount}, {kind_of_step}".encode())
            own = [self.config.num_layers, self.config.num_experts, settings, self.step_number, self._hash_of_history(),
                   int(own_error is not None)]
            found = self.ranks.gather(own, self.device)
        if own_error is not None:
            raise own_error
        if found:
            self._compare(own, found, kind_of_step)

    def _compare(self, own: list[int], found: list[list[int]], kind_of_step: str) -> None:
        if any(row[:3] != own[:3] for row in found):
            sizes = ", ".join(f"rank {rank}: {row[0]} layers of {row[1]} experts" for rank, row in enumerate(found))
            raise ConfigError(f"the ranks differ in layers, experts, settings or in having a plan ({sizes}; here "
                              f"{self.config}, on_recount='{self._on_recount}', {kind_of_step}). Give every rank the same")
        for rank, row in enumerate(found):
            if row[5]:
                raise UsageError(f"step {self.step_number}: rank {rank} gave begin_step() a plan that cannot be; its message tells "
                                 "what is wrong")
        for what, column in (("steps done", 3), (f"counts of earlier steps, which {self.config.scope} reads (as a hash, 0: "
                                                 "none)", 4)):
            if any(row[column] != own[column] for row in found):
                values = ", ".join(f"rank {rank}: {row[column]}" for rank, row in enumerate(found))
                raise StateError(f"the ranks differ in {what}: {values}. Give every rank the same state: load_state_dict() of "
                                 "one state_dict() on all of them, or on none")

    def _hash_of_history(self) -> int:
        """Of what earlier steps left for the scope; 0 for nothing. Elsewhere than on the CPU only whether there is something,
        for looking would wait for the device."""
        kept_LE = self._previous_counts_LE
        if self.config.scope.kind == "ema":
            kept_LE = self._ema_fractions_LE
        if not self.config.scope.from_earlier_steps or kept_LE is None:
            return 0
        if self.device.type != "cpu":
            return 1
        kept_LE = kept_LE.contiguous()
        return 1 + zlib.crc32(ctypes.string_at(kept_LE.data_ptr(), kept_LE.nbytes))  # numpy need not be there

    def _current_step(self, what: str) -> Step:
        if self._step is None:
            raise StateError(f"{what} outside a step; call begin_step() first")
        return self._step

    def _current_frame(self) -> Optional[Frame]:
        if self.frame is None and torch.is_grad_enabled():
            raise StateError("a forward with gradients outside begin_forward() would not be balanced. Call begin_step() and "
                             "begin_forward(), or evaluate under torch.no_grad()")
        return self.frame

    def _earlier_fractions(self) -> Optional[Tensor]:
        if self.config.scope.kind == "ema":
            return self._ema_fractions_LE
        if self.config.scope.kind != "previous_step" or self._previous_counts_LE is None:
            return None
        return fractions(self._previous_counts_LE)

    def _remember(self, counts_LE: Tensor) -> None:
        self._previous_counts_LE = counts_LE
        if self.config.scope.kind != "ema":
            return
        decay, now_LE = self.config.scope.decay, fractions(counts_LE)
        kept_LE = self._ema_fractions_LE
        self._ema_fractions_LE = now_LE if kept_LE is None else kept_LE * decay + now_LE * (1.0 - decay)

    def _check_forwards(self, step: Step) -> None:
        problems, differences = self.ranks.sum(torch.stack([step.problems(), step.differences()])).tolist()
        if problems > 0:
            self.abandon_step()
            raise step.faults.first or StateError(
                step.complaint() or f"step {step.number}: another rank reported a problem; its message tells which")
        if differences > 0 and self._on_recount == "error":
            self.abandon_step()
            raise StateError(step.recount_complaint() or
                             f"step {step.number}: on another rank a forward that ran again counted differently")

    def _report(self, step: Step) -> StepReport:
        config, values_LX = self.config, self.ranks.sum(step.value_sums())
        has_lbl = not self.lacks_history and not bool(values_LX[:, 0].isnan().any())
        lbl_L = [float(value) for value in values_LX[:, 0]] if has_lbl else []
        z_L = [float(value) for value in values_LX[:, 1]] if config.z_coefficient > 0.0 else []
        weighted = config.per_layer(config.coefficient) * sum(lbl_L) + config.per_layer(config.z_coefficient) * sum(z_L)
        return StepReport(
            step=self.step_number, scope=str(config.scope), tokens=step.step_tokens(), lbl_L=lbl_L, z_loss_L=z_L,
            weighted_loss=weighted, counts_LE=step.step_counts(), micro_batch_counts_MLE=step.micro_batch_counts(),
            differences=int(step.differences()))


def _copy_to(tensor: Optional[Tensor], device: torch.device) -> Optional[Tensor]:
    return None if tensor is None else tensor.detach().clone().to(device)
