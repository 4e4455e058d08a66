"""Histograms that are cheap to add to.

A measurement through the SDK's histogram takes 8.7 µs; a delivery makes two of them and has a
budget of five microseconds for all of its metrics. Here a measurement is a search among twenty
bounds and an addition: a third of a microsecond. `export.py` exports them as the SDK's data points.
Only the event loop's thread writes; the exporting thread reads a copy, which may lack a measurement
that is being added, and contains it the next time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    1_800.0, 7_200.0, 43_200.0, 86_400.0,
)  # fmt: skip
"""From a millisecond to a day: a delivery may succeed at its last attempt."""
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
        """Add one measurement; a value equal to a bound belongs to the bucket below it."""
        self.counts[bisect_left(bounds, value)] += 1
        self.total += value
        if value < self.minimum:  # noqa: PLR1730 - min() is a call, on a hot path
            self.minimum = value
        if value > self.maximum:  # noqa: PLR1730
            self.maximum = value


class Distribution:
    """A histogram with at most `max_series` sets of labels; further ones are not counted."""

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
        """Add one measurement."""
        series = self.series(labels)
        if series is not None:
            series.add(self.bounds, value)

    def add_all(self, values: Iterable[float], labels: Labels = ()) -> None:
        """Add several measurements with the same labels."""
        series = self.series(labels)
        if series is not None:
            for value in values:
                series.add(self.bounds, value)

    def series(self, labels: Labels) -> Series | None:
        """Return the series of these labels; None if there are `max_series` others."""
        series = self._series.get(labels)
        if series is None and len(self._series) < self._max_series:
            series = self._series[labels] = Series(len(self.bounds))
        return series

    def snapshot(self) -> Mapping[Labels, Series]:
        """Return copies of all series, for another thread."""
        return {labels: _copy_of(series) for labels, series in tuple(self._series.items())}


def _copy_of(series: Series) -> Series:
    copy = Series(0)
    copy.counts = series.counts.copy()
    copy.total = series.total
    copy.minimum, copy.maximum = series.minimum, series.maximum
    return copy
