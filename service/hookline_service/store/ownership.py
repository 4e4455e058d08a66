"""Nodes, their leases, and the owner of each bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from hookline_service.store.database import Session
from hookline_service.store.statements import Statements

SQL = Statements("ownership")


@dataclass(frozen=True, slots=True)
class BucketLease:
    """One bucket as of a survey."""

    bucket: int
    node_id: UUID | None
    epoch: int
    is_overdue: bool
    """The lease of its owner has ended."""
    is_vacant: bool
    """It has no owner, or one whose row is gone."""


@dataclass(frozen=True, slots=True)
class Survey:
    """All buckets at one moment."""

    leases: list[BucketLease]
    sharing_nodes: int
    """Live nodes that are not about to leave; they share the buckets."""
    others: int
    """The same without this node."""
    next_end_s: float | None
    """Time until the first lease of another node ends, unless renewed; None: no other node."""


class OwnershipStore:
    """Liveness and leases, on a connection of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def open(self) -> None:
        """Connect, for statements that do not depend on what was read before."""
        await self._session.open()

    async def register(
        self, node_id: UUID, lease_s: float, hostname: str, version: str, worker_name: str
    ) -> None:
        """Write the node's row; it lives for `lease_s` seconds from the database's clock."""
        await self._session.fetch(SQL.register, node_id, lease_s, hostname, version, worker_name)

    async def expire_all(self) -> None:
        """Expire every node; only for a node that is certain to be alone."""
        await self._session.fetch(SQL.expire_all)

    async def expire_predecessor(self, worker_name: str) -> None:
        """Expire the node of an earlier process of this name, whose end the supervisor has seen."""
        await self._session.fetch(SQL.expire_predecessor, worker_name)

    async def renew(
        self, node_id: UUID, lease_s: float, address: str = "", *, is_leaving: bool = False
    ) -> float | None:
        """Renew the lease; return the database's clock in Unix seconds, or None if the row is gone.

        `address` is the address of the node. A node that `is_leaving` takes no share of buckets.
        """
        rows = await self._session.fetch(SQL.renew, node_id, lease_s, address, is_leaving)
        if not rows:
            return None
        self._session.log_seen(rows[0]["flushed_bytes"])
        return float(rows[0]["database_s"])

    async def survey(self, node_id: UUID) -> Survey:
        """Read all buckets, and how many nodes share them."""
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
        """Expire overdue nodes and take buckets, in one transaction; return the buckets taken."""
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
        """Give buckets up; return those that this node owned."""
        rows = await self._session.fetch(SQL.give, node_id, list(buckets))
        return [row["bucket"] for row in rows]

    async def leave(self, node_id: UUID) -> None:
        """Delete the node's row: its buckets are vacant at once."""
        await self._session.fetch(SQL.leave, node_id)

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()
