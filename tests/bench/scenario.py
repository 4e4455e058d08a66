"""What a scenario is: how it is played, on what, for how long, and what it is meant to reach."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tests.bench.measure import Figures
from tests.bench.receiver import Group
from tests.bench.stage import Stage


@dataclass(frozen=True)
class Extent:
    """How much of each scenario is played."""

    asked_s: float | None = None
    """Seconds of load, instead of the scenario's own."""
    is_full: bool = False
    """Scenarios that take long are played to their full length."""
    scale: float = 1.0
    """Of the large numbers (a million pending): below 1 to try a change out, never to quote."""

    def seconds(self, own_s: float, full_s: float | None = None) -> float:
        """How long to load."""
        return self.asked_s or (full_s if self.is_full and full_s else own_s)

    def count(self, whole: int) -> int:
        """A large number, scaled."""
        return max(1, int(whole * self.scale))


Play = Callable[[Stage, Extent], Awaitable[Figures]]


@dataclass(frozen=True)
class Goal:
    """A bound on one figure."""

    figure: str
    bound: float
    is_least: bool = False
    """The figure is to be at least the bound; otherwise at most."""

    def is_met(self, figures: Figures) -> bool:
        """Whether the figure is within the bound."""
        figure = figures[self.figure]
        return figure >= self.bound if self.is_least else figure <= self.bound


def least(figure: str, bound: float) -> Goal:
    """At least so much."""
    return Goal(figure, bound, is_least=True)


def most(figure: str, bound: float) -> Goal:
    """At most so much."""
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
    """What is counted per second, and what each cost."""
