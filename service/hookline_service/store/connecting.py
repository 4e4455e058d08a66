"""A new connection until it may be used: its server is checked, its settings are verified.

Settings are made by SET and read back, never as start-up parameters: a pooler refuses those or
ignores them. A pooler that shares server sessions between clients (transaction or statement mode)
is refused: prepared statements, LISTEN, advisory locks and settings live in the session.

A history is one line of commits. Promoting a standby, or going back to an older copy of the disk,
begins another, in which an epoch or a transaction number may come a second time.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

import asyncpg
import orjson

from hookline_service.store.statements import Statements

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"  # generic in its stubs alone

SQL = Statements("connecting")

CONNECT_TIMEOUT_S = 5.0
MIN_SERVER_VERSION = 15
_SESSION_TOKEN = "hookline.session"  # noqa: S105 - a setting's name
_SHARED = (
    "a pooler shares its sessions between clients (pool_mode transaction or statement, or a"
    " server_reset_query that is empty): connect directly, or with pool_mode session"
)


class UnsafeServerError(Exception):
    """The database cannot keep the promise that OK means stored."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = "; ".join(problems)
        super().__init__(f"the database is refused: {self.problems}")


@dataclass(frozen=True, slots=True)
class History:
    """The line of commits that a connection is on, as it was when that was last looked at."""

    history_id: UUID
    system_identifier: int
    timeline: int
    flushed_bytes: int
    """How far its log was on disk: within a history this never goes back."""

    def is_same(self, other: History | None) -> bool:
        """Whether what was read on one holds on the other."""
        return other is not None and self.history_id == other.history_id

    def is_ahead_of(self, other: History) -> bool:
        """Whether the other is the server that this one's was promoted to replace."""
        is_one_system = self.system_identifier == other.system_identifier
        return is_one_system and self.timeline > other.timeline


async def connect(url: str, settings: Mapping[str, str]) -> Connection:
    """A connection whose server was checked and whose settings hold.

    Raises `UnsafeServerError`, and what asyncpg raises where no server answers.
    """
    connection: Connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    try:
        await _check_server(connection)
        await _make_settings(connection, settings)
        await connection.set_type_codec(
            "jsonb",
            schema="pg_catalog",
            encoder=lambda value: b"\x01" + orjson.dumps(value),
            decoder=lambda data: orjson.loads(data[1:]),
            format="binary",
        )
    except (
        asyncpg.DuplicatePreparedStatementError,
        asyncpg.InvalidSQLStatementNameError,
    ) as error:
        connection.terminate()
        raise UnsafeServerError([_SHARED]) from error
    except BaseException:
        connection.terminate()  # a caller that gave up waiting leaves no connection behind
        raise
    return connection


async def _check_server(connection: Connection) -> None:
    (row,) = await connection.fetch(SQL.check_server)
    problems: list[str] = []
    if row["version"] < MIN_SERVER_VERSION:
        problems.append(f"it is Postgres {row['version']}; {MIN_SERVER_VERSION} or newer is needed")
    if row["is_read_only"]:
        problems.append("it is read-only")
    problems += [f"its {name} is off, so a crash could lose events" for name in row["unsafe"]]
    if row["is_shared"]:
        problems.append(_SHARED)
    if problems:
        raise UnsafeServerError(problems)


async def _make_settings(connection: Connection, settings: Mapping[str, str]) -> None:
    """Set, then read back in another statement, which a shared session would answer otherwise."""
    wanted = {**settings, _SESSION_TOKEN: secrets.token_hex(8)}
    made = await connection.fetch(SQL.set, list(wanted), list(wanted.values()))
    read = {
        row["name"]: row["value"] for row in await connection.fetch(SQL.read_settings, list(wanted))
    }
    if read[_SESSION_TOKEN] != wanted[_SESSION_TOKEN]:
        raise UnsafeServerError([_SHARED])
    lost = [row["name"] for row in made if read[row["name"]] != row["value"]]
    if lost:
        raise UnsafeServerError([f"its session does not keep {', '.join(lost)} as it was set"])


async def read_history(connection: Connection, known: History | None) -> History:
    """The history of a connection; begins a new one where the server was promoted since the last.

    So it does where the log is shorter than when `known` was read: the disk is an older copy.
    """
    while True:
        (row,) = await connection.fetch(SQL.read_history)
        history = History(
            row["history_id"], row["system_identifier"], row["timeline"], row["flushed_bytes"]
        )
        has_gone_back = (
            known is not None
            and history.is_same(known)
            and history.flushed_bytes < known.flushed_bytes
        )
        if row["is_current"] and not has_gone_back:
            return history
        await connection.execute(
            SQL.begin_history, history.history_id, history.system_identifier, history.timeline
        )
