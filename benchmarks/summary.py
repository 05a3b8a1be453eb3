"""Medians, spread and ratios of samples taken in turns."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from latentrt.runtime.errors import BenchmarkError


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, quartiles, extremes and number of samples."""

    median: float
    lower: float
    upper: float
    least: float
    most: float
    count: int

    @property
    def spread(self) -> float:
        """Distance between the quartiles as a share of the median."""
        return (self.upper - self.lower) / self.median if self.median else 0.0


def summarise(samples: Sequence[float]) -> Summary:
    """Summarise samples. Raises `BenchmarkError` if there are none."""
    if not samples:
        raise BenchmarkError("no samples: nothing to summarise. Run at least one round")
    if len(samples) == 1:
        return Summary(*(samples[0],) * 5, count=1)
    lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(statistics.median(samples), lower, upper, min(samples), max(samples), len(samples))


def ratios(slower: Sequence[float], faster: Sequence[float]) -> tuple[float, ...]:
    """Ratios of samples, round by round, so that whatever slowed a whole round cancels out.

    Raises:
        BenchmarkError: the numbers of rounds differ.
    """
    if len(slower) != len(faster):
        raise BenchmarkError(f"{len(slower)} and {len(faster)} samples: ratios need the same rounds. Run both again")
    return tuple(one / other for one, other in zip(slower, faster, strict=True))
