"""Nodes, their leases, and who owns which bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from hookline_service.store.database import Session
from hookline_service.store.statements import Statements

SQL = Statements("ownership")


@dataclass(frozen=True, slots=True)
class BucketLease:
    """One bucket as the survey saw it."""

    bucket: int
    node_id: UUID | None
    epoch: int
    is_overdue: bool
    """Its owner's lease has run out."""
    is_vacant: bool
    """It has no owner, or one whose row is gone."""


@dataclass(frozen=True, slots=True)
class Survey:
    """All buckets at one moment."""

    leases: list[BucketLease]
    sharing_nodes: int
    """Nodes that live and do not leave: the buckets are theirs to share."""
    others: int
    """Those of them that are not this node."""
    next_end_s: float | None
    """How long the first of the others' leases has to go, unless it is renewed; None: no other."""


class OwnershipStore:
    """Liveness and leases, on a connection of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def open(self) -> None:
        """Connect, where what is to be run next was not made from what was read before."""
        await self._session.open()

    async def register(
        self, node_id: UUID, lease_s: float, hostname: str, version: str, place: str
    ) -> None:
        """Write the node's row; it lives for `lease_s` seconds from the database's clock."""
        await self._session.fetch(SQL.register, node_id, lease_s, hostname, version, place)

    async def expire_all(self) -> None:
        """Declare every node dead; for a node that is known to be the only one."""
        await self._session.fetch(SQL.expire_all)

    async def expire_predecessor(self, place: str) -> None:
        """Declare whoever ran at this place dead; its supervisor has seen its process end."""
        await self._session.fetch(SQL.expire_predecessor, place)

    async def renew(
        self, node_id: UUID, lease_s: float, address: str = "", *, is_leaving: bool = False
    ) -> float | None:
        """Renew the lease; the database's clock in Unix seconds, or None where the row is gone.

        `address` is where the node serves. One that `is_leaving` is counted out of the shares.
        """
        rows = await self._session.fetch(SQL.renew, node_id, lease_s, address, is_leaving)
        if not rows:
            return None
        self._session.log_seen(rows[0]["flushed_bytes"])
        return float(rows[0]["database_s"])

    async def survey(self, node_id: UUID) -> Survey:
        """All buckets, and who there is to share them, as this node asks."""
        rows = await self._session.fetch(SQL.survey, node_id)
        leases = [
            BucketLease(
                row["bucket"], row["node_id"], row["epoch"], bool(row["overdue"]), row["vacant"]
            )
            for row in rows
        ]
        if not rows:
            return Survey([], 0, 0, None)
        (first, *_) = rows
        return Survey(leases, first["sharing_nodes"], first["others"], first["next_end_s"])

    async def take(
        self, node_id: UUID, overdue: Sequence[UUID], wanted: Sequence[BucketLease]
    ) -> list[int]:
        """Bury the overdue and take the wanted buckets, in one transaction; those that were got."""
        async with self._session.transaction() as connection:
            for dead in sorted(overdue):
                await connection.fetch(SQL.expire, dead)
            rows = await connection.fetch(
                SQL.take,
                node_id,
                [lease.bucket for lease in wanted],
                [lease.epoch for lease in wanted],
            )
        return [row["bucket"] for row in rows]

    async def give(self, node_id: UUID, buckets: Sequence[int]) -> list[int]:
        """Give buckets up; those that were ours."""
        rows = await self._session.fetch(SQL.give, node_id, list(buckets))
        return [row["bucket"] for row in rows]

    async def leave(self, node_id: UUID) -> None:
        """Delete the node's row: its buckets are vacant at once."""
        await self._session.fetch(SQL.leave, node_id)

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()
