"""The embedded Postgres of `hookline dev`, the demo and the tests: started, adopted, stopped.

Owns the order of events, and when a running Postgres is taken over. Where it lives is for
`home` to say, under which account `account`, its settings and access rules `settings`;
one process is a postmaster. Independent of tables.

Life and death. If Hookline is killed, its Postgres lives on. The next start finds it by its
`postmaster.pid`, makes sure that it is the one, and adopts it if it runs today's program with
today's settings and answers; otherwise it is shut down and started anew. One that died is recovered
by Postgres itself. A start that fails leaves nothing running. The data directory is locked from
start to stop, so two Hooklines never share a Postgres unknowingly.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ParamSpec, TypeVar
from urllib.parse import quote

import asyncpg
import structlog

from hookline_service.store.embedded.account import SYSTEM_ACCOUNTS, Account, EmbeddedPostgresError
from hookline_service.store.embedded.home import Home, find_home, locked, make_data_dir
from hookline_service.store.embedded.postmaster import Postmaster, log_tail
from hookline_service.store.embedded.programs import REFUGES
from hookline_service.store.embedded.settings import DATABASE, INITDB_ARGUMENTS, ROLE, configuration

_LINGERING_POLL_S = 0.2

_log = structlog.get_logger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


async def _to_end(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run blocking work in a thread. If we are cancelled, it still ends before we do.

    Else it would go on in a data directory that is no longer locked.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # or asyncio would report an exception that was never retrieved
        raise


class EmbeddedPostgres:
    """Runs the wheel's Postgres (18) for one data directory, which it locks from start to stop.

    `start_timeout_s` bounds making a new cluster, and then starting and recovering it, each;
    `stop_timeout_s` a clean shutdown. `settings` are Postgres's own, by name; `settings.py` has
    those that are set anyway. As root it runs as the first of `system_accounts` there is, and keeps
    what that account cannot reach in the first of `refuges` that can be used. `adopted` says
    whether the last start found it running.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 60.0,
        settings: Mapping[str, str] = MappingProxyType({}),
        system_accounts: Sequence[str] = SYSTEM_ACCOUNTS,
        refuges: Sequence[Path] = REFUGES,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.adopted = False
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._settings = dict(settings)
        self._system_accounts = tuple(system_accounts)
        self._refuges = tuple(refuges)
        self._lock = contextlib.ExitStack()
        self._home: Home | None = None
        self._postmaster: Postmaster | None = None
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The address of the running database, for asyncpg and libpq; it holds no secret."""
        if self._url is None:
            raise EmbeddedPostgresError(f"The Postgres of {self.data_dir} is not started.")
        return self._url

    @property
    def cluster(self) -> Path:
        """Where the database's files are: in the data directory, or in a refuge. After a start."""
        if self._home is None:
            raise EmbeddedPostgresError(f"The Postgres of {self.data_dir} was never started.")
        return self._home.cluster

    async def start(self) -> str:
        """Adopt the living Postgres of the data directory, or start it, made anew if need be.

        Returns its URL. EmbeddedPostgresError: it cannot be had, and nothing was left running; the
        text says what to do.
        """
        if self._url is not None:
            return self._url
        self.adopted = False
        try:
            home = await _to_end(self._move_in)
            deadline = time.monotonic() + self._start_timeout_s
            self.adopted = await self._adopt(home, deadline)
            if not self.adopted:
                await self._launch(home, deadline)
                await _open_database(home, deadline)
            self._url = _url_of(home, DATABASE)
            return self._url
        except OSError as error:
            await asyncio.shield(self.stop())
            raise EmbeddedPostgresError(
                f"Cannot keep a database in {self.data_dir} ({error}): set HOOKLINE_DATA_DIR to a "
                "directory that can be written to."
            ) from error
        except BaseException:
            await asyncio.shield(self.stop())
            raise

    async def stop(self) -> None:
        """Shut Postgres down and wait until it is gone; then let go of the data directory.

        Does nothing if it is not running. EmbeddedPostgresError: it does not stop.
        """
        postmaster, self._postmaster, self._url = self._postmaster, None, None
        try:
            if postmaster is not None:
                await postmaster.stop(self._stop_timeout_s)
            if self._home is not None:
                self._home.close_socket_dir()
        finally:
            self._lock.close()

    async def remove(self) -> None:
        """Stop, and delete the database, wherever it is kept. For a demo's or a test's."""
        await self.stop()
        if self._home is not None:
            await _to_end(self._move_out, self._home)

    def url_of_running(self) -> str | None:
        """The address of the Postgres that another process runs for the data directory, or None.

        Changes nothing. EmbeddedPostgresError: what is there is not ours.
        """
        if not self.data_dir.is_dir():
            return None
        home = find_home(
            self.data_dir, system_accounts=self._system_accounts, refuges=self._refuges
        )
        return None if Postmaster.find(home.cluster) is None else _url_of(home, DATABASE)

    def _move_in(self) -> Home:
        make_data_dir(self.data_dir, self._system_accounts)
        self._lock.enter_context(locked(self.data_dir))
        home = find_home(
            self.data_dir, system_accounts=self._system_accounts, refuges=self._refuges
        )
        if home.is_new:
            home.create(INITDB_ARGUMENTS, timeout_s=self._start_timeout_s)
        home.check()
        self._home = home
        return home

    def _move_out(self, home: Home) -> None:
        with locked(self.data_dir):
            home.remove()

    async def _adopt(self, home: Home, deadline: float) -> bool:
        """Adopt a Postgres that runs in the cluster; one that cannot be used is stopped."""
        found = await _to_end(Postmaster.find, home.cluster)
        if found is None:
            return False
        self._postmaster = found
        suits = found.program == home.programs.folder / "postgres"
        if suits and await _to_end(self._is_configured, home) and await found.wait_ready(deadline):
            try:
                await _open_database(home, deadline)
            except EmbeddedPostgresError as error:
                _log.warning("embedded_postgres_unusable", error=str(error))
            else:
                _log.info("embedded_postgres_adopted", pid=found.pid, cluster=str(home.cluster))
                return True
        _log.info("embedded_postgres_restarted", pid=found.pid, cluster=str(home.cluster))
        await found.stop(self._stop_timeout_s)
        return False

    async def _launch(self, home: Home, deadline: float) -> None:
        await _to_end(self._configure, home)
        while True:
            postmaster = await _to_end(self._launch_once, home)
            if await postmaster.wait_ready(deadline):
                return
            # The processes of a Postgres that was killed end a moment after it.
            lingering = not postmaster.is_alive and "shared memory block" in log_tail(home.cluster)
            if not lingering or time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"{postmaster.describe_end()}\nIf the database is damaged, restore it from a "
                    f"backup, or move {home.cluster} away to begin with an empty one."
                )
            await asyncio.sleep(_LINGERING_POLL_S)

    def _launch_once(self, home: Home) -> Postmaster:
        # Kept here and not only returned: the caller may be cancelled meanwhile.
        self._postmaster = Postmaster.launch(home)
        return self._postmaster

    def _configuration(self, home: Home) -> Mapping[str, str]:
        user = Account.of_uid(os.geteuid()).name
        return configuration(self._settings, socket_dir=home.socket_dir, user=user)

    def _is_configured(self, home: Home) -> bool:
        try:
            return all(
                (home.cluster / name).read_text(encoding="utf-8") == text
                for name, text in self._configuration(home).items()
            )
        except (OSError, ValueError):
            return False

    def _configure(self, home: Home) -> None:
        for name, text in self._configuration(home).items():
            with home.replacing(name) as file:
                file.write(text)


def _url_of(home: Home, database: str) -> str:
    host = quote(str(home.socket_dir), safe="/")
    return f"postgresql://{ROLE}@/{database}?host={host}&port=5432"


async def _open_database(home: Home, deadline: float) -> None:
    """Connect once, and make the database if it is not there yet."""
    timeout_s = max(deadline - time.monotonic(), 1.0)
    try:
        try:
            connection = await asyncpg.connect(_url_of(home, DATABASE), timeout=timeout_s)
        except asyncpg.InvalidCatalogNameError:
            connection = await asyncpg.connect(_url_of(home, "postgres"), timeout=timeout_s)
            await connection.execute(f"CREATE DATABASE {DATABASE}", timeout=timeout_s)
        await connection.close(timeout=timeout_s)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise EmbeddedPostgresError(
            f"Postgres in {home.cluster} does not let us in ({error!r}). Its log ends:\n"
            f"{log_tail(home.cluster)}"
        ) from error
