"""How often values fell between bounds: the counts behind a histogram."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

__all__ = ["Distribution"]


class Distribution:
    """Counts of values by their size.

    One thread adds; another may read meanwhile, and may miss the last value in one of the numbers.

    Attributes:
        bounds: ascending; ``counts[i]`` values were at most ``bounds[i]`` and above the bound before, the last count's
            above all bounds.
        total: the sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def merge(self, other: Distribution) -> None:
        """Count all that another of the same bounds has counted."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound, and infinity, with how many values were at most that."""
        below = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            below += count
            yield bound, below
