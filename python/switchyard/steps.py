"""The book of one step: its forwards, the counts that ranks add up, and when which coefficients are known.

A PlannedStep (planned_step.py) knows its micro-batches ahead; every scope works. An OpenStep does not: a micro-batch's loss is
averaged as the caller averages the micro-batches, so their number cancels. Shapes as in frame.py; M micro-batches.
"""

from __future__ import annotations

import abc
from typing import Any, Optional

import torch
from torch import Tensor

from .config import BalanceConfig
from .errors import ShapeError, StateError, SwitchyardError, UsageError
from .faults import Faults
from .frame import Frame, fractions, wide_type
from .ranks import Ranks


class Step(abc.ABC):
    """@param earlier_LE  f from earlier steps, where the scope takes it from there and there is one"""

    needs_whole_step = False

    def __init__(self, config: BalanceConfig, ranks: Ranks, number: int, earlier_LE: Optional[Tensor], device: torch.device):
        self.config = config
        self.ranks = ranks
        self.number = number
        self.device = device
        self.faults = Faults(ranks.size)
        self.frames: dict[int, Frame] = {}
        self.closed: list[int] = []
        self._earlier_LE = earlier_LE

    @property
    def next_micro_batch(self) -> int:
        return len(self.frames)

    def place(self, micro_batch: int) -> str:
        rank = f", rank {self.ranks.rank}" if self.ranks.size > 1 else ""
        return f"step {self.number}, micro-batch {micro_batch}{rank}"

    def begin(self, ops: Any, micro_batch: int, segments: Tensor, num_segments: Optional[int],
              share: Optional[Tensor]) -> Frame:
        """A forward's book. Of several ranks one that asked for what cannot be gets a book in which nothing fits, and a fault."""
        try:
            if segments.dtype != torch.int64:
                raise ShapeError(f"step {self.number}: segments are {segments.dtype}; expected int64")
            if segments.device.type != self.device.type:
                raise ShapeError(f"step {self.number}: segments are on {segments.device}, the loss is on {self.device}")
            return self._frame(ops, micro_batch, segments.reshape(-1), num_segments, share)
        except SwitchyardError as error:
            self.faults.add(error)
        known = self.frames.get(micro_batch)
        if known is not None:
            return known
        nothing_T = torch.empty(0, dtype=torch.int64, device=self.device)
        frame = Frame(self.config, ops, self.place(micro_batch), nothing_T, self._segments_of(micro_batch), self.faults)
        if self._has(micro_batch):
            self.frames[micro_batch] = frame
        return frame

    def _make_frame(self, ops: Any, micro_batch: int, segment_T: Tensor, num_segments: int) -> Frame:
        known = self.frames.get(micro_batch)
        if known is None:
            # Elsewhere than on the CPU looking would wait for the device.
            if self.device.type == "cpu" and segment_T.numel() > 0 and int(segment_T.max()) >= num_segments:
                raise ShapeError(f"{self.place(micro_batch)}: a token is of segment {int(segment_T.max())} of a forward with "
                                 f"{num_segments}; expected 0 to {num_segments - 1}, or -1 for padding")
            self.frames[micro_batch] = Frame(self.config, ops, self.place(micro_batch), segment_T, num_segments, self.faults)
        elif known.num_segments != num_segments or known.segment_T.shape != segment_T.shape:
            raise UsageError(f"{known.place}: begun again with {segment_T.shape[0]} tokens in {num_segments} segments; the "
                             f"first time {known.segment_T.shape[0]} in {known.num_segments}")
        return self.frames[micro_batch]

    def close(self, frame: Frame) -> None:
        micro_batch = next((number for number, known in self.frames.items() if known is frame), None)
        if micro_batch in self.closed:
            return
        if micro_batch == len(self.closed):
            # Before anything is booked: the forward may be run again. Several ranks tell each other in the sum, or where there is none
            # in close_step().
            if self.ranks.size == 1:
                self._raise_problems(micro_batch, self._problems_of(micro_batch))
            self.closed.append(micro_batch)
            self._close(micro_batch, frame)
            return
        self.faults.add(UsageError(f"{frame.place}: close_forward() before that of micro-batch {len(self.closed)}; close them in "
                                   "order, for the ranks add up their counts then"))
        self._give_up()

    def unclosed(self) -> list[int]:
        return [micro_batch for micro_batch in self.frames if micro_batch not in self.closed]

    def discard_unclosed(self) -> None:
        for micro_batch in self.unclosed():
            del self.frames[micro_batch]

    def _problems_of(self, micro_batch: int) -> Tensor:
        """How much of a forward on this rank has something that complaint_of() would tell, int64 []. Does not wait."""
        return self.frames[micro_batch].problems() + self.faults.number

    def complaint_of(self, micro_batch: int) -> str:
        """What is wrong with a forward of this rank, or nothing. Waits for the device."""
        return self.frames[micro_batch].complaint()

    def problems(self) -> Tensor:
        """Of all forwards of this rank so far, int64 []."""
        number = self.faults.number + len(self._without_backward())
        own = torch.full((), number, dtype=torch.int64, device=self.device)
        return sum((self._problems_of(micro_batch) for micro_batch in self.frames), own)

    def complaint(self) -> str:
        for complaint in filter(None, map(self.complaint_of, sorted(self.frames))):
            return complaint
        for frame in self._without_backward():
            return f"{frame.place}: backward came to other forwards of the step, but not to this one, so its loss did not act. Run " \
                "backward of each micro-batch of the plan, or abandon_step() where one is skipped"
        return ""

    def _without_backward(self) -> list[Frame]:
        """Forwards whose backward is missing from the step. Without a plan none: a model may run for what no loss comes from."""
        return []

    def _raise_problems(self, micro_batch: int, problems: Tensor) -> None:
        """Every rank raises where one has a problem: the others would wait for it for ever. CPU only, for looking would wait
        for another device; close_step() looks there."""
        if self.device.type != "cpu" or int(problems) == 0:
            return
        if self.faults.first is not None:
            raise self.faults.first
        own = self.complaint_of(micro_batch) if micro_batch in self.frames else ""
        raise StateError(own or f"step {self.number}: another rank reported a problem in this micro-batch; its message tells "
                         "which")

    def _earlier(self) -> Tensor:
        """f from earlier steps, or zeros: no loss yet."""
        if self._earlier_LE is not None:
            return self._earlier_LE
        return torch.zeros(self.config.num_layers, self.config.num_experts, dtype=wide_type(self.device), device=self.device)

    @abc.abstractmethod
    def _frame(self, ops: Any, micro_batch: int, segment_T: Tensor, num_segments: Optional[int],
              share: Optional[Tensor]) -> Frame: ...

    @abc.abstractmethod
    def _has(self, micro_batch: int) -> bool:
        """Whether the step may have such a micro-batch on this rank."""

    @abc.abstractmethod
    def _segments_of(self, micro_batch: int) -> int:
        """As far as they are known."""

    @abc.abstractmethod
    def _give_up(self) -> None:
        """After a fault, where this rank cannot go on: takes part in the sums that the others wait for, so that all raise."""

    @abc.abstractmethod
    def _close(self, micro_batch: int, frame: Frame) -> None: ...

    @abc.abstractmethod
    def close_counting(self) -> None: ...

    @abc.abstractmethod
    def step_tokens(self) -> int:
        """Valid tokens of all ranks."""

    @abc.abstractmethod
    def _value_weight(self, micro_batch: int) -> float:
        """Weight of a micro-batch in the step's value, its coefficients already holding what the plan knows."""

    @abc.abstractmethod
    def _token_weight(self, micro_batch: int) -> float:
        """Weight of each of its tokens in the step's z-loss."""

    def differences(self) -> Tensor:
        zero = torch.zeros((), dtype=torch.int64, device=self.device)
        return sum((frame.differences().sum() for frame in self.frames.values()), zero)

    def recount_complaint(self) -> str:
        for frame in self.frames.values():
            for layer, number in enumerate(frame.differences().tolist()):
                if number > 0:
                    return (f"{frame.place}, layer {layer}: run again, the forward counted {number} entries (segment, expert) "
                            "differently. Routing must repeat under checkpointing and after a pre-pass: restore random states, "
                            "and keep dropout and autocast the same; on_recount='report' goes on regardless")
        return ""

    def value_sums(self) -> Tensor:
        """This rank's part of the values, [L, 2]: LBL, squared logsumexp per token."""
        values_LX = torch.zeros(self.config.num_layers, 2, dtype=wide_type(self.device), device=self.device)
        for micro_batch, frame in self.frames.items():
            if frame.unit_LSE is not None:
                values_LX[:, 0] += self._value_weight(micro_batch) * (frame.unit_LSE * frame.prob_sums_LSE).sum((1, 2))
            values_LX[:, 1] += self._token_weight(micro_batch) * frame.squared_lse_LS.sum(1)
        return values_LX

    def micro_batch_counts(self) -> Tensor:
        shape = (0, self.config.num_layers, self.config.num_experts)
        if not self.frames:
            return torch.zeros(shape, dtype=torch.int64, device=self.device)
        return torch.stack([self.frames[number].counts_LSE.sum(1) for number in sorted(self.frames)])

    def step_counts(self) -> Tensor:
        """int64 [L, E] over all ranks. Collective."""
        return self.ranks.sum(self.micro_batch_counts().sum(0))


class OpenStep(Step):
    """Nothing is known ahead; each forward's sum over ranks carries its tokens. The number of micro-batches cancels."""

    def __init__(self, config: BalanceConfig, ranks: Ranks, number: int, earlier_LE: Optional[Tensor], device: torch.device):
        super().__init__(config, ranks, number, earlier_LE, device)
        self._counts_LE = torch.zeros(config.num_layers, config.num_experts, dtype=torch.int64, device=device)  # all ranks
        self._tokens = torch.zeros((), dtype=torch.int64, device=device)
        self._tokens_of: dict[int, Tensor] = {}
        self._share_of: dict[int, Tensor] = {}  # mean over ranks; the micro-batches of a step that give one all do

    def begin(self, ops: Any, micro_batch: int, segments: Tensor, num_segments: Optional[int],
              share: Optional[Tensor]) -> Frame:
        if share is not None:  # before all that may be wrong, for the other ranks are in this sum
            wide = share.detach().to(self.device, wide_type(self.device), copy=True)
            self._share_of[micro_batch] = self.ranks.sum(wide) / self.ranks.size
        return super().begin(ops, micro_batch, segments, num_segments, share)

    def _has(self, micro_batch: int) -> bool:
        return True

    def _segments_of(self, micro_batch: int) -> int:
        return 0

    def _frame(self, ops: Any, micro_batch: int, segment_T: Tensor, num_segments: Optional[int],
               share: Optional[Tensor]) -> Frame:
        if num_segments is None:
            raise UsageError(f"step {self.number}: how many segments? Give num_segments, or segments of shape [B, S]")
        self._check_shares(micro_batch, share)
        return self._make_frame(ops, micro_batch, segment_T, num_segments)

    def _check_shares(self, micro_batch: int, share: Optional[Tensor]) -> None:
        """Raises StateError where some micro-batches carry their own weight: the others have none beside them."""
        odd = [earlier for earlier in self.frames if earlier != micro_batch and (earlier in self._share_of) == (share is None)]
        if odd:
            given, other = ("no share", "one") if share is None else ("a share", "none")
            raise StateError(f"{self.place(micro_batch)}: the forward carries {given} of the step's items (num_items_in_batch), "
                             f"but micro-batches {odd} of this step carried {other}. Give it to all or to none; run a forward "
                             "that trains nothing under torch.no_grad(), or end the step before it with end_step()")

    def discard_unclosed(self) -> None:
        for micro_batch in self.unclosed():
            self._share_of.pop(micro_batch, None)
        super().discard_unclosed()

    def _give_up(self) -> None:
        for micro_batch in self.unclosed():
            self.closed.append(micro_batch)
            self._close(micro_batch, self.frames[micro_batch])

    def _close(self, micro_batch: int, frame: Frame) -> None:
        counts_LE = frame.counts_LSE.sum(1)
        tokens_S = frame.tokens_S()
        own = torch.stack([tokens_S.sum(), (tokens_S > 0).sum(), (tokens_S.sum() > 0).long(), self._problems_of(micro_batch)])
        sums = self.ranks.sum(torch.cat([counts_LE.flatten(), own]))
        self._raise_problems(micro_batch, sums[-1])
        tokens, segments, ranks = sums[-4:-1].to(wide_type(self.device)).clamp_min(1).unbind()
        all_counts_LE = sums[:-4].reshape(counts_LE.shape)
        self._counts_LE += all_counts_LE
        self._tokens += sums[-4]
        self._tokens_of[micro_batch] = sums[-4]
        wide_S = tokens_S.to(wide_type(self.device))
        own_tokens = wide_S.sum().clamp_min(1)
        kind, by_tokens = self.config.scope.kind, self.config.weighting == "tokens"
        if kind in ("sequence", "sequences"):
            fractions_LSE = fractions(frame.counts_LSE)
            per_token_S = wide_S.new_ones(()) / tokens if by_tokens else 1.0 / (segments * wide_S.clamp_min(1))
        elif kind == "micro_batch":
            fractions_LSE = fractions(counts_LE).unsqueeze(1)
            per_token_S = wide_S.new_ones(()) / tokens if by_tokens else 1.0 / (ranks * own_tokens)
        else:
            source_LE = {"ranks": all_counts_LE, "prefix": self._counts_LE}.get(kind)
            fractions_LSE = (self._earlier() if source_LE is None else fractions(source_LE)).unsqueeze(1)
            per_token_S = wide_S.new_ones(()) / tokens
        share = self._share_of.get(micro_batch, wide_S.new_ones(()))
        valid_S = (wide_S > 0).to(wide_S.dtype)
        factors: dict[str, Tensor | float] = {"sum": 1.0, "mean": float(self.ranks.size), "tokens": tokens / own_tokens}
        factor = factors[self.config.contract.ranks]
        unit_LSE = self.config.num_experts * fractions_LSE * (per_token_S * valid_S).reshape(1, -1, 1)
        frame.fill(unit_LSE, factor * share, 1.0 / tokens)

    def close_counting(self) -> None:
        if len(self.closed) != len(self.frames):
            self.faults.add(StateError(f"step {self.number}: {len(self.closed)} of {len(self.frames)} forwards were closed"))
            self._give_up()

    def step_tokens(self) -> int:
        return int(self._tokens)

    def _value_weight(self, micro_batch: int) -> float:
        if self._share_of:
            return float(self._share_of[micro_batch] / sum(self._share_of.values()))
        if self.config.weighting == "mean":
            return 1.0 / len(self.frames)
        return float(self._tokens_of[micro_batch]) / max(self.step_tokens(), 1)

    def _token_weight(self, micro_batch: int) -> float:
        return self._value_weight(micro_batch) / max(float(self._tokens_of[micro_batch]), 1.0)

    def step_counts(self) -> Tensor:
        return self._counts_LE
