"""The audit log in Postgres: drafts of entries for each change, and the entries, read.

A change inserts its draft in its own statement (`audited` in the SQL), so that both are committed
or neither; the schema numbers and chains the entries (migration 0005). Independent of which calls
are audited: the API decides that for reads, each store for its changes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from hookline_service.domain.audit import AuditEntry, BrokenChainError, ChainHead
from hookline_service.domain.audit_view import View, json_of
from hookline_service.domain.caller import Caller, current_caller
from hookline_service.domain.errors import NotFoundError, Reason
from hookline_service.domain.names import WILDCARD, tenant_name
from hookline_service.store.database import Database
from hookline_service.store.statements import Statements

SQL = Statements("audit")

NEWEST = (1 << 63) - 1
"""Where a list begins: behind every sequence."""

_TEXT_LENGTH_MAX = 1_024
_WALK_BATCH = 500


def draft(
    resource: str,
    *,
    tenant_id: str = "",
    before: View | None = None,
    after: View | None = None,
    caller: Caller | None = None,
    action: str = "",
) -> dict[str, str]:
    """Return the column `entry` of a draft: an action of the caller, by default the current one.

    `action` names what is done where the caller makes no RPC.
    """
    by = caller or current_caller()
    return {
        "principal": _storable(by.principal),
        "method": _storable(by.method or action),
        "resource": _storable(resource),
        "tenant": tenant_name(tenant_id) if tenant_id else "",
        "remote_address": _storable(by.remote_address),
        "before_json": json_of(before),
        "after_json": json_of(after),
        "trace_id": by.trace_id,
    }


def _storable(text: str) -> str:
    """What came from outside, as jsonb takes it; a name that long is cut, visibly."""
    if len(text) > _TEXT_LENGTH_MAX:
        text = text[:_TEXT_LENGTH_MAX] + "…"
    return text.encode(errors="replace").decode().replace("\x00", "\ufffd")


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Some entries, newest first, and whether there are older ones."""

    entries: list[AuditEntry]
    has_more: bool


@dataclass(frozen=True, slots=True)
class LogEnds:
    """The first entry that is kept, and the head."""

    head: ChainHead
    first: int | None
    """None: there is no entry."""
    pruned_note: str | None
    """The statement of what was pruned, unverified; None: nothing was."""

    def check(self, start: ChainHead) -> None:
        """Raise `BrokenChainError` where the first entry is not the one that follows `start`."""
        expected = start.sequence + 1
        if self.first is not None and self.first < expected:
            raise BrokenChainError(
                self.first, f"entry {self.first} lies before the first, {expected}"
            )
        if self.first != expected and self.head.sequence > start.sequence:
            found = "" if self.first is None else f"; {self.first} comes instead"
            raise BrokenChainError(expected, f"entry {expected} is missing{found}")


@dataclass(frozen=True, slots=True)
class AuditExtent:
    """What the tables hold, before anything of it is checked."""

    ends: LogEnds
    last: int | None
    """The greatest sequence of an entry; None: there is no entry."""
    drafts: int
    """Committed ones: the trigger leaves none."""
    missing_triggers: Sequence[str]
    """Those that append and protect entries, and are not there or disabled."""

    def check(self, start: ChainHead) -> None:
        """Raise `BrokenChainError` for what no walk from the first entry to the head would meet.

        `start` is the head behind which the log begins.
        """
        self.ends.check(start)
        head = self.ends.head
        if self.last is not None and self.last > head.sequence:
            raise BrokenChainError(
                self.last, f"entry {self.last} lies behind the head, which says {head.sequence}"
            )
        if self.drafts:
            text = f"{self.drafts} drafts were committed and are no entries: changes are missing"
            raise BrokenChainError(head.sequence, text)
        if self.missing_triggers:
            raise BrokenChainError(
                head.sequence,
                f"triggers are missing or disabled: {', '.join(self.missing_triggers)}; changes"
                " may be missing",
            )


class AuditLog:
    """Reads the log, and adds entries of privileged reads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_read(self, resource: str, tenant_id: str) -> None:
        """Enter that the current caller read something; committed when this returns."""
        entry = draft(resource, tenant_id=tenant_id)
        await self._database.fetch(SQL.add_read, tenant_id, entry)

    async def page(
        self, tenant_id: str, *, before: int = NEWEST, limit: int, max_bytes: int
    ) -> AuditPage:
        """Entries before a sequence, of a live tenant, or all where `tenant_id` is `-`.

        Ends after `limit` entries, or before their JSON passes `max_bytes`. A tenant that had the
        name before is another one. Raises `NotFoundError` (TENANT_NOT_FOUND).
        """
        if tenant_id == WILDCARD:
            rows = await self._database.fetch(SQL.list_of_all, before, limit + 1, max_bytes)
        else:
            tenant = await self._database.fetchrow(SQL.find_tenant, tenant_id)
            if tenant is None:
                raise NotFoundError(
                    f"there is no {tenant_name(tenant_id)}", Reason.TENANT_NOT_FOUND
                )
            rows = await self._database.fetch(
                SQL.list_of_tenant, tenant["tenant_uid"], before, limit + 1, max_bytes
            )
        entries = [_entry_of(row) for row in rows[:limit]]
        return AuditPage(entries, has_more=bool(rows) and rows[0]["found"] > len(entries))

    async def head(self) -> ChainHead:
        """Return the head of the chain. Raises `BrokenChainError`: it was removed."""
        row = await self._database.fetchrow(SQL.head)
        if row is None:
            raise BrokenChainError(0, "the log's head is missing")
        return ChainHead(row["sequence"], row["hash"])

    async def ends(self) -> LogEnds:
        """Return both ends of the log, of one snapshot. Raises `BrokenChainError`: no head."""
        row = await self._database.fetchrow(SQL.ends)
        if row is None:
            raise BrokenChainError(0, "the log's head is missing")
        return _ends_of(row)

    async def pruned_note(self) -> str | None:
        """Return the statement of what was pruned, unverified; None: nothing was."""
        row = await self._database.fetchrow(SQL.pruned_note)
        return None if row is None else row["note"]

    async def extent(self) -> AuditExtent:
        """The head and all that there is, of one moment. Raises `BrokenChainError`: no head."""
        rows = await self._database.fetch(SQL.extent)
        if len(rows) != 1:
            raise BrokenChainError(0, f"the log has {len(rows)} heads instead of one")
        (row,) = rows
        missing = await self._database.fetch(SQL.missing_triggers)
        return AuditExtent(
            ends=_ends_of(row),
            last=row["last"],
            drafts=row["drafts"],
            missing_triggers=[found["name"] for found in missing],
        )

    async def walk(self, last: int, *, behind: int = 0) -> AsyncIterator[AuditEntry]:
        """Every entry behind `behind` up to the sequence `last`, oldest first, read in batches."""
        while rows := await self._database.fetch(SQL.walk, behind, last, _WALK_BATCH):
            for row in rows:
                yield _entry_of(row)
            behind = rows[-1]["sequence"]


def _ends_of(row: asyncpg.Record) -> LogEnds:
    head = ChainHead(row["sequence"], row["hash"])
    return LogEnds(head, row["first"], row["pruned_note"])


def _entry_of(row: asyncpg.Record) -> AuditEntry:
    fields: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    return AuditEntry(**fields)


_COLUMNS = (
    "sequence", "create_time", "principal", "method", "resource", "tenant", "tenant_uid",
    "remote_address", "before_json", "after_json", "trace_id", "encoding", "hash",
)  # fmt: skip
