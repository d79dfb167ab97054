"""What is known about a step ahead, and the groups that a scope makes of it. Pure functions over plain numbers.

A segment is a sequence or a packed document. The segments of a step have one order: micro-batch, rank, row, document.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Optional

from .config import Contract, Scope, Weighting
from .errors import UsageError


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Valid tokens of each segment, [rank][micro-batch][segment]. Ranks may have different numbers of micro-batches."""

    tokens: Sequence[Sequence[Sequence[int]]]

    def __post_init__(self) -> None:
        for rank, micro_batches in enumerate(self.tokens):
            for micro_batch, segments in enumerate(micro_batches):
                if any(tokens < 0 for tokens in segments):
                    raise UsageError(f"rank {rank}, micro-batch {micro_batch}: segments of {list(segments)} valid tokens; "
                                     "expected 0 or more")

    @property
    def num_ranks(self) -> int:
        return len(self.tokens)

    @property
    def num_micro_batches(self) -> int:
        """Of the rank that has most."""
        return max((len(micro_batches) for micro_batches in self.tokens), default=0)

    def segments(self, rank: int, micro_batch: int) -> Sequence[int]:
        """Empty where the rank has no such micro-batch."""
        return self.tokens[rank][micro_batch] if micro_batch < len(self.tokens[rank]) else ()

    def tokens_of(self, rank: int, micro_batch: int) -> int:
        return sum(self.segments(rank, micro_batch))

    def rank_tokens(self, rank: int) -> int:
        return sum(sum(segments) for segments in self.tokens[rank])

    @property
    def step_tokens(self) -> int:
        return sum(self.rank_tokens(rank) for rank in range(self.num_ranks))


def _as_int64(tokens: Any) -> Optional[int]:
    """None for what is no whole number."""
    try:
        number = int(tokens)
        return number if bool(number == tokens) and abs(number) < 2**63 else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def checked_plan(micro_batches: Any) -> list[list[int]]:
    """[micro-batch][segment] tokens as plain numbers. Raises UsageError for what ranks could not send each other; numbers below
    0 they can, and StepPlan refuses them on all."""
    expected = "expected the valid tokens of each segment of each micro-batch, such as [[5, 7], [4]]"
    try:
        listed = [list(segments) for segments in micro_batches]
    except TypeError:  # also of a tensor without dimensions
        raise UsageError(f"begin_step({micro_batches!r}): {expected}") from None
    found = [[_as_int64(tokens) for tokens in segments] for segments in listed]
    for micro_batch, segments in enumerate(found):
        if None in segments:
            given = listed[micro_batch][segments.index(None)]
            raise UsageError(f"begin_step(): micro-batch {micro_batch} has a segment of {given!r} tokens; {expected}")
    return found


@dataclasses.dataclass
class Group:
    """Segments whose probabilities are averaged to one P. `weight` is w_g; the weights of a step sum to 1."""

    tokens: int = 0  # T_g
    weight: float = 0.0
    micro_batches: set[int] = dataclasses.field(default_factory=set)
    ranks: set[int] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class Grouping:
    """Groups of a step in step order, and the group of each segment (-1 without valid tokens), indexed like the plan."""

    groups: Sequence[Group]
    group_of: Sequence[Sequence[Sequence[int]]]


def _group_key(scope: Scope, ordinal: int, micro_batch: int, rank: int) -> tuple[int, ...]:
    """Equal for the segments of one group. @param ordinal counts segments with tokens: padding must not shift the borders."""
    if scope.kind == "sequence":
        return (ordinal,)
    if scope.kind == "sequences":
        return (ordinal // scope.num_sequences,)
    if scope.kind == "micro_batch":
        return (micro_batch, rank)
    if scope.kind in ("ranks", "prefix"):
        return (micro_batch,)
    return ()


def _set_weights(scope: Scope, weighting: Weighting, num_sequences: int, groups: Sequence[Group]) -> None:
    for group in groups:
        group.weight = float(group.tokens) if weighting == "tokens" else 1.0
    short = scope.kind == "sequences" and num_sequences % scope.num_sequences != 0
    if weighting == "mean" and short and len(groups) > 1:
        full_tokens = sum(group.tokens for group in groups[:-1])
        groups[-1].weight = groups[-1].tokens * (len(groups) - 1) / full_tokens
    total = sum(group.weight for group in groups)
    for group in groups:
        group.weight /= total


def make_groups(scope: Scope, weighting: Weighting, plan: StepPlan) -> Grouping:
    """The groups of a step. A last group of sequences(n) that is short weighs by its tokens over the mean of the full ones."""
    groups: list[Group] = []
    open_key: tuple[int, ...] | None = None
    ordinal = 0
    group_of = [[[-1] * len(segments) for segments in micro_batches] for micro_batches in plan.tokens]
    for micro_batch in range(plan.num_micro_batches):
        for rank in range(plan.num_ranks):
            for row, tokens in enumerate(plan.segments(rank, micro_batch)):
                if tokens == 0:
                    continue
                key = _group_key(scope, ordinal, micro_batch, rank)
                ordinal += 1
                if key != open_key:
                    groups.append(Group())
                open_key = key
                groups[-1].tokens += tokens
                groups[-1].micro_batches.add(micro_batch)
                groups[-1].ranks.add(rank)
                group_of[rank][micro_batch][row] = len(groups) - 1
    _set_weights(scope, weighting, ordinal, groups)
    return Grouping(groups, group_of)


def contract_factor(contract: Contract, plan: StepPlan, rank: int, micro_batch: int) -> float:
    """s: the factor by which a gradient on a rank and micro-batch is enlarged so that the caller's averaging leaves it."""
    tokens = plan.tokens_of(rank, micro_batch)
    factor = 1.0
    if contract.micro_batches == "mean":
        factor *= len(plan.tokens[rank])
    elif contract.micro_batches == "tokens" and tokens > 0:
        factor *= plan.rank_tokens(rank) / tokens
    if contract.ranks == "mean":
        factor *= plan.num_ranks
    elif contract.ranks == "tokens" and tokens > 0:
        factor *= plan.step_tokens / plan.rank_tokens(rank)
    return factor


def needs_whole_step(scope: Scope, plan: StepPlan, grouping: Grouping) -> bool:
    """Whether coefficients of some micro-batch exist only after a later one was counted."""
    return not scope.from_earlier_steps and any(len(group.micro_batches) > 1 for group in grouping.groups)


def known_after(plan: StepPlan, grouping: Grouping) -> list[dict[int, int]]:
    """[rank]: by micro-batch, the one after whose counts the coefficients are known. Without micro-batches of padding, which
    have none."""
    last = [max(group.micro_batches) for group in grouping.groups]
    return [{micro_batch: max(last[group] for group in groups if group >= 0)
             for micro_batch, groups in enumerate(grouping.group_of[rank]) if any(group >= 0 for group in groups)}
            for rank in range(plan.num_ranks)]
