"""Connections to Postgres, and the edge where asyncpg's exceptions become ours.

A pool serves calls; each loop of the data path has a session of its own.

Theory of operation. A statement ends in one of four ways, and every caller must know which:

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
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

import asyncpg
import orjson

from service.domain.errors import Reason, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0

# A process that was frozen inside a transaction holds its locks no longer than this; nor does the
# backend of one that is dead, which would not notice while it waits for somebody's lock itself.
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
MIN_SERVER_VERSION = 15


class OutcomeUnknownError(Exception):
    """A statement was sent and its answer lost: it may have committed."""

    def __init__(self, message: str, backend: Backend | None) -> None:
        super().__init__(message)
        self.backend = backend


class ContentionError(Exception):
    """A deadlock or a serialisation failure: nothing was done, run it again."""


class LockTimeoutError(ContentionError):
    """Another transaction held a lock for longer than the statement waits: nothing was done."""


class RejectedError(Exception):
    """The server refused the statement: nothing was done. `sqlstate` says why."""

    def __init__(self, message: str, sqlstate: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


TRANSIENT = (UnavailableError, OutcomeUnknownError, ContentionError)
"""What passes by itself: a loop says so and takes its next turn."""


class Backend:
    """The server process behind a connection, so that it can be made sure that it is gone."""

    __slots__ = ("pid", "start_time")

    def __init__(self, pid: int, start_time: object) -> None:
        self.pid = pid
        self.start_time = start_time


_CONTENTION = frozenset({"40P01", "40001"})
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


def _translate(error: BaseException, backend: Backend | None) -> NoReturn:
    if isinstance(error, _GONE):
        raise OutcomeUnknownError(f"{type(error).__name__}: {error}", backend) from error
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = error.sqlstate or "XX000"
        if sqlstate == _LOCK_NOT_AVAILABLE:
            raise LockTimeoutError(str(error)) from error
        if sqlstate in _CONTENTION:
            raise ContentionError(str(error)) from error
        raise RejectedError(str(error), sqlstate) from error
    if isinstance(error, asyncpg.exceptions.DataError | ValueError | TypeError | OverflowError):
        raise RejectedError(str(error), "22000") from error
    raise error


async def _prepare_connection(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + orjson.dumps(value),
        decoder=lambda data: orjson.loads(data[1:]),
        format="binary",
    )


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

    def __init__(self, url: str, name: str, timeout_s: float) -> None:
        self._url = url
        self._name = name
        self._timeout_s = timeout_s
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._backend: Backend | None = None

    async def _connected(self) -> asyncpg.Connection[asyncpg.Record]:
        connection = self._connection
        if connection is not None and not connection.is_closed():
            return connection
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection, self._backend = await _connect(self._url, self._name)
        except (*_GONE, asyncpg.PostgresError) as error:
            raise unavailable(error) from error
        self._connection = connection
        return connection

    async def fetch(self, statement: str, *args: object) -> list[asyncpg.Record]:
        """Run one statement in a transaction of its own; rows as a list."""
        connection = await self._connected()
        with self._translated():
            async with asyncio.timeout(self._timeout_s):
                return await connection.fetch(statement, *args)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """Several statements in one transaction, under one deadline; commits on leaving."""
        connection = await self._connected()
        with self._translated():
            async with asyncio.timeout(self._timeout_s), _transaction(connection):
                yield connection

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
            _translate(error, self._backend)

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


async def _connect(url: str, name: str) -> tuple[asyncpg.Connection[asyncpg.Record], Backend]:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
        url,
        timeout=CONNECT_TIMEOUT_S,
        server_settings={
            "application_name": f"hookline {name}",
            **_ABSENCE_LIMITS,
            **_PATH_SETTINGS,
        },
    )
    try:
        await _prepare_connection(connection)
        start_time = await connection.fetchval(
            "SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        )
    except BaseException:
        connection.terminate()  # whoever gave up waiting leaves no connection behind
        raise
    return connection, Backend(connection.get_server_pid(), start_time)


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

    @property
    def url(self) -> str:
        """Where the database is; holds a password, so never logged."""
        return self._url

    async def open(self) -> None:
        """Fill the pool; raises `UnavailableError` where no server answers."""
        try:
            self._pool = await asyncpg.create_pool(
                self._url,
                init_size=1,
                min_size=0,  # else it connects by itself, and logs a traceback where it cannot
                max_size=self._pool_size,
                timeout=CONNECT_TIMEOUT_S,
                init=_prepare_connection,
                server_settings={
                    "application_name": f"hookline {self._name}",
                    "jit": "off",
                    **_ABSENCE_LIMITS,
                },
            )
        except (*_GONE, asyncpg.PostgresError) as error:
            raise unavailable(error) from error

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
        return Session(self._url, name, timeout_s or self._timeout_s)

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
                _translate(error, None)

    async def fetch(self, statement: str, *args: object) -> list[asyncpg.Record]:
        """One statement on a pooled connection."""
        async with self._acquired() as connection:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await connection.fetch(statement, *args)
            except BaseException as error:  # noqa: BLE001 - translated, or raised again as it is
                _translate(error, None)

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
        """How many connections the server takes in all, of those who are no superusers."""
        row = await self.fetchrow(
            """SELECT sum(setting::int * CASE name WHEN 'max_connections' THEN 1 ELSE -1 END)::int
               FROM pg_settings
               WHERE name IN ('max_connections', 'reserved_connections',
                              'superuser_reserved_connections')"""
        )
        return 0 if row is None else int(row[0])

    async def check_server(self) -> None:
        """Refuse a server that could lose what it acknowledged, or that is too old or read-only."""
        row = await self.fetchrow(
            """SELECT current_setting('server_version_num')::int / 10000 AS version,
                      pg_is_in_recovery() OR current_setting('transaction_read_only')::bool
                          AS read_only,
                      array(SELECT name FROM pg_settings
                            WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')
                              AND setting = 'off' ORDER BY name) AS unsafe"""
        )
        if row is None:
            raise LookupError("a statement without FROM returns a row")
        problems: list[str] = []
        if row["version"] < MIN_SERVER_VERSION:
            problems.append(
                f"it is Postgres {row['version']}; {MIN_SERVER_VERSION} or newer is needed"
            )
        if row["read_only"]:
            problems.append("it is read-only")
        problems += [f"its {name} is off, so a crash could lose events" for name in row["unsafe"]]
        if problems:
            raise UnsafeServerError(problems)


class UnsafeServerError(Exception):
    """The database cannot keep the promise that OK means stored."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("the database is refused: " + "; ".join(problems))
