"""Histograms that are added to by the hundred.

A measurement through the SDK's histogram was timed at 8.7 µs; a delivery has two of them, and five
microseconds for all of its metrics. Here it is a search among twenty bounds and an addition, a
third of a microsecond. What is exported are the SDK's own data points (`export.py`). Written by the
event loop's thread alone; the exporting thread reads a copy, which may lack a measurement that is
just being added, and has it the next time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    1_800.0, 7_200.0, 43_200.0, 86_400.0,
)  # fmt: skip
"""From a millisecond to a day: a delivery may be accepted at its last attempt."""
COUNTS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)

Labels = tuple[tuple[str, str], ...]


class Series:
    """The measurements of one set of labels."""

    __slots__ = ("counts", "maximum", "minimum", "total")

    def __init__(self, bounds: int) -> None:
        self.counts = [0] * (bounds + 1)
        self.total = 0.0
        self.minimum = float("inf")
        self.maximum = float("-inf")

    def add(self, bounds: Sequence[float], value: float) -> None:
        """One measurement; a value that equals a bound lies below it."""
        self.counts[bisect_left(bounds, value)] += 1
        self.total += value
        if value < self.minimum:  # noqa: PLR1730 - min() is a call, and this is asked for often
            self.minimum = value
        if value > self.maximum:  # noqa: PLR1730
            self.maximum = value


class Distribution:
    """A histogram with few sets of labels; what comes beyond `max_series` is not counted."""

    def __init__(
        self, name: str, unit: str, description: str, bounds: Sequence[float], *,
        max_series: int = 400,
    ) -> None:  # fmt: skip
        self.name = name
        self.unit = unit
        self.description = description
        self.bounds = bounds
        self._max_series = max_series
        self._series: dict[Labels, Series] = {}

    def add(self, value: float, labels: Labels = ()) -> None:
        """One measurement."""
        series = self.series(labels)
        if series is not None:
            series.add(self.bounds, value)

    def add_all(self, values: Iterable[float], labels: Labels = ()) -> None:
        """Several of the same labels."""
        series = self.series(labels)
        if series is not None:
            for value in values:
                series.add(self.bounds, value)

    def series(self, labels: Labels) -> Series | None:
        """The series of these labels; None where there are too many by now."""
        series = self._series.get(labels)
        if series is None and len(self._series) < self._max_series:
            series = self._series[labels] = Series(len(self.bounds))
        return series

    def snapshot(self) -> Mapping[Labels, Series]:
        """All series at this moment, for another thread."""
        return {labels: _copy_of(series) for labels, series in tuple(self._series.items())}


def _copy_of(series: Series) -> Series:
    copy = Series(0)
    copy.counts = series.counts.copy()
    copy.total = series.total
    copy.minimum, copy.maximum = series.minimum, series.maximum
    return copy
