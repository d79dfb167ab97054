"""A step whose micro-batches are known ahead, on all ranks. Shapes as in frame.py; G groups."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import torch
from torch import Tensor

from .config import BalanceConfig
from .errors import StateError, UsageError
from .frame import Frame, fractions, wide_type
from .plan import StepPlan, contract_factor, known_after, make_groups, needs_whole_step
from .ranks import Ranks
from .steps import Step


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
        of_ranks = known_after(plan, self._grouping)
        self._known_after = of_ranks[ranks.rank]
        self._settle_after = {micro_batch for of_rank in of_ranks for micro_batch in of_rank.values()}
        self._planned_S = [torch.tensor(list(tokens), dtype=torch.int64, device=device) for tokens in plan.tokens[ranks.rank]]

    def _own_groups(self, micro_batch: int) -> list[int]:
        return list(self._grouping.group_of[self.ranks.rank][micro_batch])

    def _has(self, micro_batch: int) -> bool:
        return 0 <= micro_batch < len(self.plan.tokens[self.ranks.rank])

    def _segments_of(self, micro_batch: int) -> int:
        return len(self.plan.tokens[self.ranks.rank][micro_batch]) if self._has(micro_batch) else 0

    def _frame(self, ops: Any, micro_batch: int, segment_T: Tensor, num_segments: Optional[int],
               share: Optional[Tensor]) -> Frame:
        if not self._has(micro_batch):
            raise UsageError(f"step {self.number}: micro-batch {micro_batch} of a plan with "
                             f"{len(self.plan.tokens[self.ranks.rank])}")
        if share is not None:
            raise UsageError(f"step {self.number}: a share is for steps without a plan; here the contract says what is "
                             "averaged")
        planned = self._segments_of(micro_batch)
        if num_segments is not None and num_segments != planned:
            raise UsageError(f"{self.place(micro_batch)}: {num_segments} segments; begin_step() was told of {planned}")
        return self._make_frame(ops, micro_batch, segment_T, planned)

    def _close(self, micro_batch: int, frame: Frame) -> None:
        if micro_batch < self._num_closed:  # given up
            self._fill_with_nothing(frame)
            return
        self._unfilled.append(micro_batch)
        self._add_up(micro_batch, frame, self._problems_of(micro_batch))
        if micro_batch + 1 == len(self.plan.tokens[self.ranks.rank]):
            self._add_up_missing()

    def _give_up(self) -> None:
        self._add_up_missing()
        for frame in self.frames.values():
            self._fill_with_nothing(frame)

    @staticmethod
    def _fill_with_nothing(frame: Frame) -> None:
        """A backward that raised would leave the other ranks in the sum of close_step()."""
        if not frame.filled:
            frame.fill(torch.zeros_like(frame.prob_sums_LSE), 0.0, 0.0)

    def _without_backward(self) -> list[Frame]:
        """A step without any backward trains nothing, so no loss is missing beside another: its batches were skipped."""
        frames = [self.frames[number] for number in sorted(self.frames)]
        return [frame for frame in frames if frame.has_missed_backward()] if any(map(Frame.was_reached, frames)) else []

    def _add_up_missing(self) -> None:
        """Of micro-batches that only other ranks have. Before this rank's last backward, in which DistributedDataParallel sums
        gradients: all ranks must start their sums in one order."""
        for micro_batch in range(self._num_closed, self.plan.num_micro_batches):
            self._add_up(micro_batch, None, torch.full((), self.faults.number, dtype=torch.int64, device=self.device))

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
        newest = self._num_closed - 1
        # Where some rank needs the sums by now all wait for them: a problem is then raised in the same call everywhere, and no
        # rank goes on to a sum, or a backward, in which it would wait for one that raised.
        if self._shared and newest in self._settle_after:
            self._settle()
        for micro_batch in [number for number in self._unfilled if not self._shared or self._known_after.get(number, 0) <= newest]:
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
            self.faults.add(StateError(f"step {self.number}: {len(self.closed)} of {own} forwards were closed; the step's counts "
                                       "are not complete. Call close_forward() after each"))
            self._give_up()
        self._add_up_missing()  # of a rank that has no micro-batch at all
        self._settle()

    def step_tokens(self) -> int:
        return self.plan.step_tokens

    def _value_weight(self, micro_batch: int) -> float:
        return 1.0

    def _token_weight(self, micro_batch: int) -> float:
        return 1.0 / max(self.plan.step_tokens, 1)
