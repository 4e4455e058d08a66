"""The index of one tenant: which of its subscriptions an event type goes to."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from hookline_service.domain.event import RESERVED_TYPE_PREFIX
from hookline_service.store.routes import IndexRow

MAX_REMEMBERED = 4_000_000
"""Subscriptions in the remembered answers of all indexes together: about 32 MB."""
ANSWER_WEIGHT = 32
"""An answer takes as much room as so many more: an event's type may be any word."""


class Answers:
    """What all indexes remember of what they answered: where it is too much, they forget it all."""

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        self._most = most
        self._held = 0
        self._caches: list[dict[str, tuple[IndexRow, ...]]] = []

    def remember(
        self, cache: dict[str, tuple[IndexRow, ...]], event_type: str, answer: tuple[IndexRow, ...]
    ) -> None:
        """Put an answer into an index's cache."""
        self._held += len(answer) + ANSWER_WEIGHT
        if self._held > self._most:
            for one in self._caches:
                one.clear()
            self._caches.clear()
            self._held = len(answer) + ANSWER_WEIGHT
        if not cache:
            self._caches.append(cache)
        cache[event_type] = answer


class TenantIndex:
    """The routes of one tenant at one epoch."""

    __slots__ = (
        "_all", "_answers", "_cached", "_exact", "_prefixes", "_routes", "epoch", "history_id",
        "tenant_id", "uid",
    )  # fmt: skip

    def __init__(
        self,
        tenant_id: str,
        uid: UUID,
        answers: Answers | None = None,
        history_id: UUID | None = None,
    ) -> None:
        self.tenant_id = tenant_id
        self.uid = uid
        self.history_id = history_id
        self.epoch = 0
        self._routes: dict[UUID, IndexRow] = {}
        self._exact: dict[str, dict[UUID, IndexRow]] = {}
        self._prefixes: dict[str, dict[UUID, IndexRow]] = {}
        self._all: dict[UUID, IndexRow] = {}
        self._cached: dict[str, tuple[IndexRow, ...]] = {}
        self._answers = answers or Answers()

    def apply(self, epoch: int, changed: Iterable[IndexRow]) -> None:
        """Take in what changed up to an epoch."""
        for route in changed:
            before = self._routes.pop(route.subscription_uid, None)
            if before is not None:
                for pattern in before.event_types:
                    self._remove(pattern, route.subscription_uid)
            if not route.is_deleted:
                self._routes[route.subscription_uid] = route
                for pattern in route.event_types:
                    self._place_of(pattern)[route.subscription_uid] = route
            self._cached.clear()
        self.epoch = epoch

    def _place_of(self, pattern: str) -> dict[UUID, IndexRow]:
        if pattern == "*":
            return self._all
        if pattern.endswith(".*"):
            return self._prefixes.setdefault(pattern[:-1], {})
        return self._exact.setdefault(pattern, {})

    def _remove(self, pattern: str, uid: UUID) -> None:
        """Patterns that nobody has any more leave nothing behind."""
        place = self._place_of(pattern)
        place.pop(uid, None)
        if place or pattern == "*":
            return
        if pattern.endswith(".*"):
            del self._prefixes[pattern[:-1]]
        else:
            del self._exact[pattern]

    @property
    def subscription_count(self) -> int:
        """How many subscriptions it holds."""
        return len(self._routes)

    def match(self, event_type: str) -> tuple[IndexRow, ...]:
        """The subscriptions whose patterns cover a type, each once."""
        found = self._cached.get(event_type)
        if found is None:
            found = self._match(event_type)
            self._answers.remember(self._cached, event_type, found)
        return found

    def _match(self, event_type: str) -> tuple[IndexRow, ...]:
        found = dict(self._exact.get(event_type, {}))
        end = event_type.find(".")
        while end >= 0:
            found |= self._prefixes.get(event_type[: end + 1], {})
            end = event_type.find(".", end + 1)
        if not event_type.startswith(RESERVED_TYPE_PREFIX):
            found |= self._all
        return tuple(found.values())
