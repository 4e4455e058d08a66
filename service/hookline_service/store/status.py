"""What the whole deployment is doing, as any node can read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from hookline_service.domain.ids import unix_ms_of
from hookline_service.store.database import Database
from hookline_service.store.statements import Statements

SQL = Statements("status")

PENDING_COUNTED_MAX = 100_000
"""Up to so many pending deliveries are counted, in some milliseconds; more are estimated."""
DEAD_LETTERS_COUNTED_MAX = 10_000
"""As many dead letters are counted; there may be more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A registered process."""

    node_id: UUID
    hostname: str
    address: str
    """Where it serves gRPC; empty: it does not yet."""
    version: str
    start_time: datetime
    lease_until: datetime
    bucket_count: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is pending."""

    count: int
    """Exact below `counted_max`, never less than that where estimated."""
    oldest_unix_ms: int | None
    """When the oldest of it was created; None where nothing is pending."""


class UnfrozenAges(NamedTuple):
    """How many ids of each kind lie between now and the oldest that is not frozen."""

    transaction: int
    multixact: int


class StatusStore:
    """Reads the deployment's state; counts up to `counted_max` pending deliveries."""

    def __init__(self, database: Database, *, counted_max: int = PENDING_COUNTED_MAX) -> None:
        self._database = database
        self._counted_max = counted_max

    async def nodes(self) -> list[Node]:
        """Every registered node, in the order of their start."""
        return [Node(**row) for row in await self._database.fetch(SQL.nodes)]

    async def backlog(self) -> Backlog:
        """How much is pending, and since when."""
        row = await self._database.fetchrow(SQL.pending, self._counted_max)
        assert row is not None  # noqa: S101 (aggregates always answer)
        oldest: UUID | None = row["oldest_id"]
        count = row["exact"] if row["is_exact"] else max(row["exact"], row["estimate"])
        return Backlog(count, None if oldest is None else unix_ms_of(oldest))

    async def dead_letters(self) -> int:
        """How many deliveries are EXHAUSTED, up to `DEAD_LETTERS_COUNTED_MAX`."""
        row = await self._database.fetchrow(SQL.dead_letters, DEAD_LETTERS_COUNTED_MAX)
        assert row is not None  # noqa: S101 (aggregates always answer)
        count: int = row["count"]
        return count

    async def oldest_due(self, lanes: Sequence[tuple[int, UUID]]) -> dict[UUID, datetime]:
        """When the delivery that is due longest was due, of lanes by bucket and subscription.

        A lane without any that is due is missing.
        """
        buckets, uids = list(zip(*lanes, strict=True)) or [(), ()]
        return {row[0]: row[1] for row in await self._database.fetch(SQL.oldest_due, buckets, uids)}

    async def oldest_xmin_age(self) -> int:
        """How many transactions ago the oldest snapshot of the server was taken.

        Of others' sessions it sees what the role may see (`pg_read_all_stats`).
        """
        row = await self._database.fetchrow(SQL.oldest_xmin)
        assert row is not None  # noqa: S101 (greatest always answers)
        age: int = row["age"]
        return age

    async def unfrozen_ages(self) -> UnfrozenAges:
        """Of the database, of the server's, that is furthest behind."""
        row = await self._database.fetchrow(SQL.unfrozen)
        assert row is not None  # noqa: S101 (aggregates always answer)
        return UnfrozenAges(*row)
