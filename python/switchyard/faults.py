"""Calls of this rank that cannot be followed, until all ranks hear of them."""

from __future__ import annotations

from typing import Optional

from .errors import SwitchyardError


class Faults:
    """Of one rank in one step. A process alone raises at once. Of several ranks one that raised by itself would leave the others
    waiting in their next sum: it goes on without balancing and says so in that sum, and then all raise."""

    def __init__(self, num_ranks: int):
        self._num_ranks = num_ranks
        self.first: Optional[SwitchyardError] = None

    def add(self, error: SwitchyardError) -> None:
        if self._num_ranks == 1:
            raise error
        if self.first is None:  # the later ones may come from it
            self.first = error

    @property
    def number(self) -> int:
        return 0 if self.first is None else 1
