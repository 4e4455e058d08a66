"""Connections to Postgres, and the edge where asyncpg's exceptions become ours.

A pool serves calls; each loop of the data path has a session of its own. All of them are on one
history (`connecting`): where one connects to a server on another, the connections of the old one
are ended, and `on_history_changed` is called for those whose memory was read there.

Theory of operation. A statement ends in one of four ways, and every caller must distinguish them:

- it returned;
- `UnavailableError`: it never reached a server, nothing was done, repeating is safe;
- `OutcomeUnknownError`: it was sent and no answer came; it may have committed (of 192 inserts that
  failed so under crashes, 28 had);
- `ContentionError` (deadlock, serialisation: run it again) or `RejectedError` (the server read it
  and refused: class 22, 23 or anything else; nothing was done).

Each statement has a deadline. A frozen backend answers neither the statement nor a cancel, so a
connection that overran is terminated, never released.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import NoReturn, TypeAlias
from uuid import UUID
from weakref import WeakSet

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from hookline_service.domain.errors import Reason, UnavailableError
from hookline_service.store.connecting import (
    CONNECT_TIMEOUT_S,
    History,
    UnsafeServerError,
    connect,
    read_history,
)

# Both are generic in their stubs alone.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

_log = structlog.get_logger(__name__)

CLOSE_TIMEOUT_S = 2.0

# A process that was frozen inside a transaction holds its locks no longer than this; nor does the
# backend of one that is dead, which would not notice while it waits for a lock itself.
_ABSENCE_LIMITS = {
    "idle_in_transaction_session_timeout": "5s",
    "client_connection_check_interval": "2s",
}

# The data path's statements walk from arrays into indexes, whatever the statistics say: the hot
# table is empty at one moment and holds millions at the next, and a plan made for the one must do
# for both.
_PATH_SETTINGS = {
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


def _settings_of(name: str) -> dict[str, str]:
    return {"application_name": f"hookline {name}", **_ABSENCE_LIMITS}


class OutcomeUnknownError(Exception):
    """A statement was sent and its answer lost: it may have committed."""


class ContentionError(Exception):
    """A deadlock or a serialisation failure: nothing was done, run it again."""


class LockTimeoutError(ContentionError):
    """Another transaction held a lock for longer than the statement waits: nothing was done."""


class RejectedError(Exception):
    """The server refused the statement: nothing was done. `sqlstate` says why."""

    def __init__(self, message: str, sqlstate: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class BadDataError(RejectedError):
    """The server cannot store a value of the statement: nothing was done."""


class ServerTroubleError(RejectedError):
    """The server is read-only, out of a resource, or shutting down: nothing was done, repeat it."""


TRANSIENT = (UnavailableError, OutcomeUnknownError, ContentionError)
"""What passes by itself: a loop says so and takes its next turn."""


REPEATABLE = (*TRANSIENT, ServerTroubleError)
"""Errors after which the same statement may succeed: its rows are not the cause."""

_CONTENTION = frozenset({"40P01", "40001"})
_BAD_DATA_CLASS = "22"
_TROUBLE_CLASSES = frozenset({"08", "25", "53", "57", "58"})
"""SQLSTATE classes of a server in trouble: connection, read-only, resources, operator, I/O."""
_LOCK_NOT_AVAILABLE = "55P03"
_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # used again between the server's last words and the closed socket
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    OSError,
    TimeoutError,
)


def unavailable(cause: BaseException) -> UnavailableError:
    """The error of a database that could not be reached; nothing was done."""
    del cause  # its text may name hosts and users; the log has it, the caller does not
    return UnavailableError(
        "the database is not reachable; nothing was stored, repeat the call",
        Reason.DATABASE_UNAVAILABLE,
        retry_after_s=1.0,
    )


def _refused(cause: UnsafeServerError) -> UnavailableError:
    """The error of a server that must not be used, such as a standby; it may be replaced."""
    return UnavailableError(
        f"{cause}; nothing was stored, repeat the call",
        Reason.DATABASE_UNAVAILABLE,
        retry_after_s=1.0,
    )


def history_changed() -> UnavailableError:
    """The error of a statement that was made from what was read on another history."""
    return UnavailableError(
        "the database was replaced by another copy of it (a failover or a restore); nothing was"
        " stored, repeat the call",
        Reason.DATABASE_UNAVAILABLE,
        retry_after_s=1.0,
    )


def _translate(error: BaseException) -> NoReturn:
    if isinstance(error, _GONE):
        raise OutcomeUnknownError(f"{type(error).__name__}: {error}") from error
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = error.sqlstate or "XX000"
        if sqlstate == _LOCK_NOT_AVAILABLE:
            raise LockTimeoutError(str(error)) from error
        if sqlstate in _CONTENTION:
            raise ContentionError(str(error)) from error
        raise _rejection_of(sqlstate)(str(error), sqlstate) from error
    if isinstance(error, asyncpg.exceptions.DataError | ValueError | TypeError | OverflowError):
        raise BadDataError(str(error), "22000") from error
    raise error


def _rejection_of(sqlstate: str) -> type[RejectedError]:
    if sqlstate.startswith(_BAD_DATA_CLASS):
        return BadDataError
    return ServerTroubleError if sqlstate[:2] in _TROUBLE_CLASSES else RejectedError


def _is_broken(error: BaseException) -> bool:
    """Whether a connection must not be used again: it is lost, or its statement was given up."""
    return isinstance(error, (OutcomeUnknownError, *_GONE)) or not isinstance(error, Exception)


@asynccontextmanager
async def _transaction(connection: Connection) -> AsyncIterator[None]:
    """A transaction, rolled back only where the connection is known to listen.

    asyncpg's own rolls back after a deadline too, and there waits for a frozen backend for ever.
    """
    await connection.execute("BEGIN;")
    try:
        yield
        await connection.execute("COMMIT;")
    except Exception as error:
        if not _is_broken(error):
            await connection.execute("ROLLBACK;")
        raise


class Session:
    """One connection for one task of the data path; opened when needed, again when lost.

    Not for concurrent use: each of the path's loops has its own.
    """

    def __init__(self, database: Database, name: str, timeout_s: float) -> None:
        self._database = database
        self._name = name
        self._timeout_s = timeout_s
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self.history_id: UUID | None = None
        """That of its connection, or of its last one."""

    async def open(self) -> None:
        """Connect where it is not connected, on whichever history; raises `UnavailableError`."""
        connection = self._connection
        if connection is None or connection.is_closed():
            self._connection = await self._database.connect(self._name, _PATH_SETTINGS)
            self.history_id = self._database.history_id

    async def _connected(
        self, history_id: UUID | None = None
    ) -> asyncpg.Connection[asyncpg.Record]:
        """Its connection. Raises `UnavailableError`, also where it is on another history.

        That is another than the one given, or else than the one that it was on before: what is to
        be run was made from what had been read there.
        """
        made_on = history_id or self.history_id
        await self.open()
        if self._connection is None or made_on not in {None, self.history_id}:
            raise history_changed()
        return self._connection

    async def fetch(
        self, statement: str, *args: object, history_id: UUID | None = None
    ) -> list[asyncpg.Record]:
        """Run one statement in a transaction of its own; rows as a list.

        `history_id` is that on which its arguments were read, where that matters.
        """
        connection = await self._connected(history_id)
        with self._translated():
            async with asyncio.timeout(self._timeout_s):
                return await connection.fetch(statement, *args)

    @asynccontextmanager
    async def transaction(
        self, history_id: UUID | None = None
    ) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """Several statements in one transaction, under one deadline; commits on leaving."""
        connection = await self._connected(history_id)
        with self._translated():
            async with asyncio.timeout(self._timeout_s), _transaction(connection):
                yield connection

    def log_seen(self, flushed_bytes: int) -> None:
        """Remember that the log of its server was on disk so far."""
        self._database.log_seen(self.history_id, flushed_bytes)

    @asynccontextmanager
    async def connection(self, timeout_s: float) -> AsyncIterator[Connection]:
        """The bare connection, for what must not run in a transaction; with its own deadline."""
        connection = await self._connected()
        with self._translated():
            async with asyncio.timeout(timeout_s):
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - translated, or raised again as it is
            self._forget_if_broken(error)
            _translate(error)

    def _forget_if_broken(self, error: BaseException) -> None:
        connection = self._connection
        if connection is not None and _is_broken(error):
            connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Close politely, but never wait for a frozen backend."""
        connection, self._connection = self._connection, None
        if connection is None or connection.is_closed():
            return
        try:
            await connection.close(timeout=CLOSE_TIMEOUT_S)
        except (*_GONE, asyncpg.PostgresError):
            connection.terminate()


class Database:
    """A pool of connections, and a factory of sessions for the data path."""

    def __init__(
        self, url: str, *, pool_size: int = 8, timeout_s: float = 10.0, name: str = "calls"
    ) -> None:
        """`name` is the pool's, as `pg_stat_activity` shows it."""
        self._url = url
        self._name = name
        self._pool_size = pool_size
        self._timeout_s = timeout_s
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._connections: WeakSet[asyncpg.Connection[asyncpg.Record]] = WeakSet()
        self._history: History | None = None
        self.on_history_changed: list[Callable[[], None]] = []
        """Called, in order, when the server is on another history: forget what was read."""

    @property
    def history_id(self) -> UUID | None:
        """The history that every connection is on; None: there was no connection yet."""
        return None if self._history is None else self._history.history_id

    @property
    def url(self) -> str:
        """Where the database is; holds a password, so never logged."""
        return self._url

    async def check_server(self) -> None:
        """Raise `UnsafeServerError` where the server or a pooler may not be used.

        Connects twice: a pooler that shares sessions gives the second what the first has left.
        """
        connections: list[asyncpg.Connection[asyncpg.Record]] = []
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                for name in ("start", "second start"):
                    connections += [await connect(self._url, _settings_of(name))]
        except (*_GONE, asyncpg.PostgresError) as error:
            raise unavailable(error) from error
        finally:
            for connection in connections:
                connection.terminate()

    async def open(self) -> None:
        """Fill the pool; raises `UnavailableError` where no server answers."""

        async def connected(*_: object, **__: object) -> asyncpg.Connection[asyncpg.Record]:
            return await self.connect(self._name, {"jit": "off"})

        async def keep(_: object) -> None:
            """Reset nothing: a call leaves nothing in its session but a transaction that ended."""

        try:
            self._pool = await asyncpg.create_pool(
                init_size=1,
                min_size=0,  # else it connects by itself, and logs a traceback where it cannot
                max_size=self._pool_size,
                connect=connected,
                reset=keep,
            )
        except (*_GONE, asyncpg.PostgresError) as error:
            raise unavailable(error) from error

    async def connect(
        self, name: str, settings: Mapping[str, str]
    ) -> asyncpg.Connection[asyncpg.Record]:
        """A new connection, on the history of all others. Raises `UnavailableError`."""
        known = self._history
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await connect(self._url, {**_settings_of(name), **settings})
                try:
                    history = await read_history(connection, known)
                    self._adopt(history)
                except BaseException:
                    connection.terminate()
                    raise
        except UnsafeServerError as error:
            _log.warning("database_rejected", session=name, error=str(error))
            raise _refused(error) from error
        except (*_GONE, asyncpg.PostgresError) as error:
            raise unavailable(error) from error
        self._connections.add(connection)
        return connection

    def log_seen(self, history_id: UUID | None, flushed_bytes: int) -> None:
        """Remember how far the log of a history was on disk; a shorter one is of an older disk."""
        known = self._history
        if known is not None and known.history_id == history_id:
            self._history = replace(known, flushed_bytes=max(known.flushed_bytes, flushed_bytes))

    def _adopt(self, history: History) -> None:
        """Be on this history; where it is another than before, leave nothing of that one."""
        known, self._history = self._history, history
        if known is None or known.is_same(history):
            return
        if known.is_ahead_of(history):
            self._history = known
            problem = (
                f"it is on timeline {history.timeline}, and this node has seen {known.timeline}, as"
                " the primary of before a failover is: stop it, or restart this node to use it"
            )
            raise UnsafeServerError([problem])
        _log.warning(
            "database_history_changed",
            timeline=history.timeline,
            system_identifier=history.system_identifier,
        )
        for connection in tuple(self._connections):
            connection.terminate()
        for changed in self.on_history_changed:
            changed()

    async def close(self) -> None:
        """Close the pool; connections that do not answer are terminated."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    def session(self, name: str, *, timeout_s: float | None = None) -> Session:
        """A connection for one loop of the data path, named as `pg_stat_activity` shows it."""
        return Session(self, name, timeout_s or self._timeout_s)

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[PoolConnectionProxy[asyncpg.Record]]:
        pool = self._pool
        if pool is None:
            raise unavailable(RuntimeError("closed"))
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await pool.acquire()
        except (*_GONE, asyncpg.PostgresError) as error:
            raise unavailable(error) from error
        try:
            yield connection
        except BaseException as error:
            if _is_broken(error):
                # The pool may have noticed, and taken it back.
                with suppress(asyncpg.InterfaceError):
                    connection.terminate()
            raise
        finally:
            await pool.release(connection, timeout=CLOSE_TIMEOUT_S)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PoolConnectionProxy[asyncpg.Record]]:
        """One transaction of a call, on a pooled connection, under the statement deadline."""
        async with self._acquired() as connection:
            try:
                async with asyncio.timeout(self._timeout_s), _transaction(connection):
                    yield connection
            except BaseException as error:  # noqa: BLE001 - translated, or raised again as it is
                _translate(error)

    async def fetch(self, statement: str, *args: object) -> list[asyncpg.Record]:
        """One statement on a pooled connection."""
        async with self._acquired() as connection:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await connection.fetch(statement, *args)
            except BaseException as error:  # noqa: BLE001 - translated, or raised again as it is
                _translate(error)

    async def fetchrow(self, statement: str, *args: object) -> asyncpg.Record | None:
        """The first row of one statement on a pooled connection, or None."""
        rows = await self.fetch(statement, *args)
        return rows[0] if rows else None

    def pool_counts(self) -> tuple[int, int]:
        """How many of the pool's connections are idle, and how many in use."""
        if self._pool is None:
            return 0, 0
        idle = self._pool.get_idle_size()
        return idle, self._pool.get_size() - idle

    async def connection_limit(self) -> int:
        """How many connections the server takes in all, without those reserved for superusers."""
        row = await self.fetchrow(
            """SELECT sum(setting::int * CASE name WHEN 'max_connections' THEN 1 ELSE -1 END)::int
               FROM pg_settings
               WHERE name IN ('max_connections', 'reserved_connections',
                              'superuser_reserved_connections')"""
        )
        return 0 if row is None else int(row[0])
