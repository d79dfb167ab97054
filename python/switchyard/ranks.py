"""Ranks of a torch.distributed process group, or one process alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import ConfigError


class Ranks:
    """Adds numbers up over the ranks among which the tokens of a micro-batch are divided.

    @param group  None: all ranks where torch.distributed is initialised, else this process alone. With tensor, context or
                  pipeline parallelism give the group over which the router's tokens are sharded.
    """

    def __init__(self, group: Optional[Any] = None):
        self._group = group
        self.look_again()

    def look_again(self) -> None:
        """Before each step: torch.distributed may have been initialised after the loss was made."""
        initialised = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size(self._group) if initialised else 1
        self.rank = dist.get_rank(self._group) if initialised else 0
        if self.size < 1:  # torch says -1, and leaves sums out with a warning
            raise ConfigError("this process is not in the process_group that was given; give each rank a group that it belongs to")

    def start_sum(self, values: Tensor) -> Optional[dist.Work]:
        """Begins to add up in place. Wait for what is returned, if anything."""
        if self.size == 1:
            return None
        return dist.all_reduce(values, group=self._group, async_op=True)

    def sum(self, values: Tensor) -> Tensor:
        work = self.start_sum(values)
        if work is not None:
            work.wait()
        return values

    def gather(self, values: Sequence[int], device: torch.device) -> list[list[int]]:
        """Every rank's values, by rank; as many on each."""
        if self.size == 1:
            return [list(values)]
        return [row.tolist() for row in self._gather(torch.tensor(list(values), dtype=torch.int64, device=device))]

    def gather_plans(self, tokens: Sequence[Sequence[int]], device: torch.device) -> list[list[list[int]]]:
        """Every rank's [micro-batch][segment] tokens, by rank."""
        own = [list(segments) for segments in tokens]
        if self.size == 1:
            return [own]
        flat = [len(own), *(len(segments) for segments in own), *(count for segments in own for count in segments)]
        longest = max(length for (length,) in self.gather([len(flat)], device))
        padded = torch.zeros(longest, dtype=torch.int64)
        padded[: len(flat)] = torch.tensor(flat, dtype=torch.int64)
        return [_unflatten(row.tolist()) for row in self._gather(padded.to(device))]

    def _gather(self, values: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(gathered, values, group=self._group)
        return gathered


def _unflatten(flat: list[int]) -> list[list[int]]:
    num_micro_batches, rest = flat[0], flat[1:]
    lengths, values = rest[:num_micro_batches], rest[num_micro_batches:]
    plans = []
    for length in lengths:
        plans.append(values[:length])
        values = values[length:]
    return plans
