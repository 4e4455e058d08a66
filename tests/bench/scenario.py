"""The type of a scenario: its function, deployment, duration and goals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tests.bench.measure import Figures
from tests.bench.receiver import Group
from tests.bench.stage import Stage


@dataclass(frozen=True)
class Extent:
    """The extent of a run."""

    asked_s: float | None = None
    """Seconds of load; overrides those of the scenario."""
    is_full: bool = False
    """Run long scenarios to their full length."""
    scale: float = 1.0
    """Factor for large numbers (a million pending); figures below 1 must not be quoted."""

    def seconds(self, own_s: float, full_s: float | None = None) -> float:
        """Return the seconds of load."""
        return self.asked_s or (full_s if self.is_full and full_s else own_s)

    def count(self, whole: int) -> int:
        """Return a large number, scaled."""
        return max(1, int(whole * self.scale))


Play = Callable[[Stage, Extent], Awaitable[Figures]]


@dataclass(frozen=True)
class Goal:
    """A bound on one figure."""

    figure: str
    bound: float
    is_least: bool = False
    """Whether the bound is a minimum; otherwise it is a maximum."""

    def is_met(self, figures: Figures) -> bool:
        """Return whether the figure is within the bound."""
        figure = figures[self.figure]
        return figure >= self.bound if self.is_least else figure <= self.bound


def least(figure: str, bound: float) -> Goal:
    """Return a goal with a minimum."""
    return Goal(figure, bound, is_least=True)


def most(figure: str, bound: float) -> Goal:
    """Return a goal with a maximum."""
    return Goal(figure, bound)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One row of the table."""

    number: str
    name: str
    title: str
    play: Play
    goals: Sequence[Goal]
    groups: Sequence[Group] = field(default_factory=lambda: (Group(),))
    unit: str = "deliveries"
    """The unit of rates and costs."""
