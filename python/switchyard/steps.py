"""The book of one step: its forwards, the counts that ranks add up, and when which coefficients are known.

A PlannedStep knows its micro-batches ahead; every scope works. An OpenStep does not: a micro-batch's loss is averaged as the
caller averages the micro-batches, so their number cancels. Shapes as in frame.py; M micro-batches, G groups.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Optional

import torch
from torch import Tensor

from .config import BalanceConfig
from .errors import StateError, UsageError
from .frame import Frame, fractions, wide_type
from .plan import StepPlan, contract_factor, make_groups, needs_whole_step
from .ranks import Ranks


class Step(abc.ABC):
    """@param earlier_LE  f from earlier steps, where the scope takes it from there and there is one"""

    needs_whole_step = False

    def __init__(self, config: BalanceConfig, ranks: Ranks, number: int, earlier_LE: Optional[Tensor], device: torch.device):
        self.config = config
        self.ranks = ranks
        self.number = number
        self.device = device
        self.frames: dict[int, Frame] = {}
        self.closed: list[int] = []
        self._earlier_LE = earlier_LE

    @property
    def next_micro_batch(self) -> int:
        return len(self.frames)

    def place(self, micro_batch: int) -> str:
        rank = f", rank {self.ranks.rank}" if self.ranks.size > 1 else ""
        return f"step {self.number}, micro-batch {micro_batch}{rank}"

    def _make_frame(self, ops: Any, micro_batch: int, segment_T: Tensor, num_segments: int) -> Frame:
        known = self.frames.get(micro_batch)
        if known is None:
            self.frames[micro_batch] = Frame(self.config, ops, self.place(micro_batch), segment_T, num_segments)
        elif known.num_segments != num_segments or known.segment_T.shape != segment_T.shape:
            raise UsageError(f"{known.place}: begun again with {segment_T.shape[0]} tokens in {num_segments} segments; the "
                             f"first time {known.segment_T.shape[0]} in {known.num_segments}")
        return self.frames[micro_batch]

    def close(self, frame: Frame) -> None:
        micro_batch = next(number for number, known in self.frames.items() if known is frame)
        if micro_batch in self.closed:
            return
        if micro_batch != len(self.closed):
            raise UsageError(f"{frame.place}: close_forward() before that of micro-batch {len(self.closed)}; close them in "
                             "order, for the ranks add up their counts then")
        self.closed.append(micro_batch)
        self._close(micro_batch, frame)

    def unclosed(self) -> list[int]:
        return [micro_batch for micro_batch in self.frames if micro_batch not in self.closed]

    def discard_unclosed(self) -> None:
        for micro_batch in self.unclosed():
            del self.frames[micro_batch]

    def _problems_of(self, micro_batch: int) -> Tensor:
        """How much of a forward on this rank has something that complaint_of() would tell, int64 []. Does not wait."""
        return self.frames[micro_batch].problems()

    def complaint_of(self, micro_batch: int) -> str:
        """What is wrong with a forward of this rank, or nothing. Waits for the device."""
        return self.frames[micro_batch].complaint()

    def problems(self) -> Tensor:
        """Of all forwards of this rank so far, int64 []."""
        zero = torch.zeros((), dtype=torch.int64, device=self.device)
        return sum((self._problems_of(micro_batch) for micro_batch in self.frames), zero)

    def complaint(self) -> str:
        return next(filter(None, map(self.complaint_of, sorted(self.frames))), "")

    def _raise_problems(self, micro_batch: int, problems: Tensor) -> None:
        """Every rank raises where one has a problem: the others would wait for it for ever. CPU only, for looking would wait
        for another device; close_step() looks there."""
        if self.device.type != "cpu" or int(problems) == 0:
            return
        own = self.complaint_of(micro_batch) if micro_batch in self.frames else ""
        raise StateError(own or f"step {self.number}: another rank reported a problem in this micro-batch; its message tells "
                         "which")

    def _earlier(self) -> Tensor:
        """f from earlier steps, or zeros: no loss yet."""
        if self._earlier_LE is not None:
            return self._earlier_LE
        return torch.zeros(self.config.num_layers, self.config.num_experts, dtype=wide_type(self.device), device=self.device)

    @abc.abstractmethod
    def frame(self, ops: Any, micro_batch: int, segment_T: Tensor, num_segments: Optional[int],
              share: Optional[Tensor]) -> Frame: ...

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


@dataclasses.dataclass
class _Pending:
    """A sum over ranks under way."""

    micro_batch: int
    groups: list[int]
    numbers: Tensor  # int64: [G, L, E] counts, then valid tokens, then problems
    work: Any


class PlannedStep(Step):
    """All micro-batches of all ranks are known; so are T_g, w_g and s before the first forward."""

    def __init__(self, config: BalanceConfig, ranks: Ranks, number: int, earlier_LE: Optional[Tensor], device: torch.device,
                 plan: StepPlan):
        super().__init__(config, ranks, number, earlier_LE, device)
        self.plan = plan
        self._grouping = make_groups(config.scope, config.weighting, plan)
        self.needs_whole_step = needs_whole_step(config.scope, plan, self._grouping)
        self._shared = config.scope.kind == "prefix" or any(len(group.ranks) > 1 or len(group.micro_batches) > 1
                                                            for group in self._grouping.groups)
        self._shared = self._shared and not config.scope.from_earlier_steps
        self._group_counts: dict[int, Tensor] = {}  # [L, E] over all ranks
        self._pending: list[_Pending] = []
        self._num_closed = 0  # micro-batches, also those that this rank does not have
        self._unfilled: list[int] = []
        self._planned_S = [torch.tensor(list(tokens), dtype=torch.int64, device=device) for tokens in plan.tokens[ranks.rank]]

    def _own_groups(self, micro_batch: int) -> list[int]:
        return list(self._grouping.group_of[self.ranks.rank][micro_batch])

    def frame(self, ops: Any, micro_batch: int, segment_T: Tensor, num_segments: Optional[int],
              share: Optional[Tensor]) -> Frame:
        own = self.plan.tokens[self.ranks.rank]
        if not 0 <= micro_batch < len(own):
            raise UsageError(f"step {self.number}: micro-batch {micro_batch} of a plan with {len(own)}")
        if share is not None:
            raise UsageError(f"step {self.number}: a share is for steps without a plan; here the contract says what is "
                             "averaged")
        planned = len(own[micro_batch])
        if num_segments is not None and num_segments != planned:
            raise UsageError(f"{self.place(micro_batch)}: {num_segments} segments; begin_step() was told of {planned}")
        return self._make_frame(ops, micro_batch, segment_T, planned)

    def _close(self, micro_batch: int, frame: Frame) -> None:
        self._unfilled.append(micro_batch)
        self._add_up(micro_batch, frame, self._problems_of(micro_batch))
        if micro_batch + 1 == len(self.plan.tokens[self.ranks.rank]):
            self._add_up_missing()

    def _add_up_missing(self) -> None:
        """Of micro-batches that only other ranks have. Before this rank's last backward, in which DistributedDataParallel sums
        gradients: all ranks must start their sums in one order."""
        for micro_batch in range(self._num_closed, self.plan.num_micro_batches):
            self._add_up(micro_batch, None, torch.zeros((), dtype=torch.int64, device=self.device))

    def _problems_of(self, micro_batch: int) -> Tensor:
        differing_S = self.frames[micro_batch].tokens_S() != self._planned_S[micro_batch]
        return super()._problems_of(micro_batch) + differing_S.sum()

    def complaint_of(self, micro_batch: int) -> str:
        frame, planned = self.frames[micro_batch], list(self.plan.segments(self.ranks.rank, micro_batch))
        found = frame.tokens_S().tolist()
        if found != planned:
            return f"{frame.place}: the segments hold {found} valid tokens; begin_step() was told of {planned}"
        return super().complaint_of(micro_batch)

    def _add_up(self, micro_batch: int, frame: Optional[Frame], problems: Tensor) -> None:
        """Takes part in the sum of a micro-batch over ranks, also where this rank has none."""
        self._num_closed = micro_batch + 1
        if not self._shared:
            if self.ranks.size == 1:  # several ranks tell each other in close_step()
                self._raise_problems(micro_batch, problems)
            self._fill_known()
            return
        groups = [index for index, group in enumerate(self._grouping.groups) if micro_batch in group.micro_batches]
        config = self.config
        counts_GLE = torch.zeros(len(groups), config.num_layers, config.num_experts, dtype=torch.int64, device=self.device)
        if frame is not None:
            for segment, group in enumerate(self._own_groups(micro_batch)):
                if group >= 0:
                    counts_GLE[groups.index(group)] += frame.counts_LSE[:, segment]
        tail = torch.zeros(1, dtype=torch.int64, device=self.device) + problems
        numbers = torch.cat([counts_GLE.flatten(), tail])
        self._pending.append(_Pending(micro_batch, groups, numbers, self.ranks.start_sum(numbers)))
        self._fill_known()

    def _settle(self) -> None:
        """Waits for the sums under way."""
        for pending in self._pending:
            if pending.work is not None:
                pending.work.wait()
            shape = (len(pending.groups), self.config.num_layers, self.config.num_experts)
            for index, counts_LE in zip(pending.groups, pending.numbers[:-1].reshape(shape)):
                self._group_counts[index] = self._group_counts.get(index, 0) + counts_LE
        done, self._pending = self._pending, []
        for pending in done:
            self._raise_problems(pending.micro_batch, pending.numbers[-1])

    def _fill_known(self) -> None:
        def is_known(micro_batch: int) -> bool:
            groups = {group for group in self._own_groups(micro_batch) if group >= 0}
            return not self._shared or all(max(self._grouping.groups[group].micro_batches) < self._num_closed
                                           for group in groups)

        known = [micro_batch for micro_batch in self._unfilled if is_known(micro_batch)]
        if known and self._shared:
            self._settle()
        for micro_batch in known:
            self._fill(micro_batch)
            self._unfilled.remove(micro_batch)

    def _fractions_of(self, micro_batch: int, frame: Frame) -> Tensor:
        """f of each segment's group, [L, S, E]; anything for segments without a group."""
        kind = self.config.scope.kind
        groups = self._own_groups(micro_batch)
        if self.config.scope.from_earlier_steps:
            return self._earlier().unsqueeze(1).expand(-1, len(groups), -1)
        if not self._shared:
            # Each group lies within this forward, so it is enough to number those; -1 gets a number too.
            number_of = {group: number for number, group in enumerate(dict.fromkeys(groups))}
            index_S = torch.tensor([number_of[group] for group in groups], dtype=torch.int64, device=self.device)
            sums_LGE = torch.zeros(self.config.num_layers, len(number_of), self.config.num_experts,
                                   dtype=torch.int64, device=self.device).index_add_(1, index_S, frame.counts_LSE)
            return fractions(sums_LGE.index_select(1, index_S))
        counts = []
        for group in groups:
            wanted = range(group + 1) if kind == "prefix" else range(max(group, 0), group + 1)
            zero = torch.zeros(self.config.num_layers, self.config.num_experts, dtype=torch.int64, device=self.device)
            counts.append(sum((self._group_counts[index] for index in wanted), zero))
        return fractions(torch.stack(counts, 1)) if counts else frame.counts_LSE.to(wide_type(self.device))

    def _fill(self, micro_batch: int) -> None:
        frame, groups = self.frames[micro_batch], self._own_groups(micro_batch)
        per_token = [0.0 if group < 0 else self._grouping.groups[group].weight / self._grouping.groups[group].tokens
                     for group in groups]
        weight_S1 = torch.tensor(per_token, dtype=wide_type(self.device), device=self.device).unsqueeze(1)
        unit_LSE = self.config.num_experts * self._fractions_of(micro_batch, frame) * weight_S1
        factor = contract_factor(self.config.contract, self.plan, self.ranks.rank, micro_batch)
        frame.fill(unit_LSE, factor, 1.0 / max(self.plan.step_tokens, 1))

    def close_counting(self) -> None:
        own = len(self.plan.tokens[self.ranks.rank])
        if len(self.closed) != own:
            raise StateError(f"step {self.number}: {len(self.closed)} of {own} forwards were closed; the step's counts are not "
                             "complete. Call close_forward() after each")
        self._add_up_missing()  # of a rank that has no micro-batch at all
        self._settle()

    def step_tokens(self) -> int:
        return self.plan.step_tokens

    def _value_weight(self, micro_batch: int) -> float:
        return 1.0

    def _token_weight(self, micro_batch: int) -> float:
        return 1.0 / max(self.plan.step_tokens, 1)


class OpenStep(Step):
    """Nothing is known ahead; each forward's sum over ranks carries its tokens. The number of micro-batches cancels."""

    def __init__(self, config: BalanceConfig, ranks: Ranks, number: int, earlier_LE: Optional[Tensor], device: torch.device):
        super().__init__(config, ranks, number, earlier_LE, device)
        self._counts_LE = torch.zeros(config.num_layers, config.num_experts, dtype=torch.int64, device=device)  # all ranks
        self._tokens = torch.zeros((), dtype=torch.int64, device=device)
        self._tokens_of: dict[int, Tensor] = {}
        self._share_of: dict[int, Tensor] = {}  # mean over ranks; the micro-batches of a step that give one all do

    def frame(self, ops: Any, micro_batch: int, segment_T: Tensor, num_segments: Optional[int],
              share: Optional[Tensor]) -> Frame:
        if num_segments is None:
            raise UsageError(f"step {self.number}: how many segments? Give num_segments, or segments of shape [B, S]")
        if share is not None:
            wide = share.detach().to(self.device, wide_type(self.device), copy=True)
            self._share_of[micro_batch] = self.ranks.sum(wide) / self.ranks.size
        return self._make_frame(ops, micro_batch, segment_T, num_segments)

    def discard_unclosed(self) -> None:
        for micro_batch in self.unclosed():
            self._share_of.pop(micro_batch, None)
        super().discard_unclosed()

    def _close(self, micro_batch: int, frame: Frame) -> None:
        counts_LE = frame.counts_LSE.sum(1)
        tokens_S = frame.tokens_S()
        own = torch.stack([tokens_S.sum(), (tokens_S > 0).sum(), (tokens_S.sum() > 0).long(), frame.problems()])
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
            raise StateError(f"step {self.number}: {len(self.closed)} of {len(self.frames)} forwards were closed")

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
