"""Postgres on TCP, from the wheel's programs: one, or one with a standby that can be promoted."""

from __future__ import annotations

import asyncio
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress

import asyncpg

from hookline_service.store.embedded.account import SYSTEM_ACCOUNTS, Account, clean_environment
from hookline_service.store.embedded.programs import REFUGES, find_programs
from hookline_service.store.migrations import migrate
from tests.postgres import MEMORY, SETTINGS
from tests.waiting import until

ROLE = "hookline"
_RUN_S = 60.0


class Server:
    """One of the two: a data directory, and a port of the loopback that it always has."""

    def __init__(self, directory: pathlib.Path, account: Account, programs: pathlib.Path) -> None:
        self._directory = directory
        self._account = account
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"postgresql://{ROLE}@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *arguments: str) -> None:
        """Run one of Postgres's programs to its end."""
        ran = self._account.run([self._programs / program, *arguments], timeout_s=_RUN_S)
        assert ran.returncode == 0, ran.stderr

    def create(self) -> None:
        """Make a new cluster."""
        self.run("initdb", "-D", str(self._directory), "-U", ROLE, "-A", "trust", "--no-sync")

    def copy(self, primary: Server) -> None:
        """Make this the standby of a server that runs."""
        source = f"host=127.0.0.1 port={primary.port} user={ROLE} application_name=standby"
        self.run("pg_basebackup", "-D", str(self._directory), "-d", source, "-R", "-c", "fast",
                 "--no-sync")  # fmt: skip

    async def start(self, **settings: str) -> None:
        """Start it, and wait until it answers."""
        shown = {"listen_addresses": "127.0.0.1", "port": str(self.port), "fsync": "on",
                 "unix_socket_directories": "", "hot_standby": "on",
                 "restart_after_crash": "off"}  # fmt: skip
        self._launch(SETTINGS | shown | settings)
        await until(self._answers, "the server answers", within_s=_RUN_S)

    def _launch(self, settings: Mapping[str, str]) -> None:
        options = [part for name in settings for part in ("-c", f"{name}={settings[name]}")]
        self._process = subprocess.Popen(
            [str(self._programs / "postgres"), "-D", str(self._directory), *options],
            **self._account.identity,
            env=clean_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def _answers(self) -> bool:
        with suppress(OSError, asyncpg.PostgresError):
            await self.execute("SELECT")
            return True
        return False

    async def execute(self, statement: str) -> list[asyncpg.Record]:
        """Run one statement on a connection of its own."""
        connection = await asyncpg.connect(self.url, timeout=5)
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    async def end(self) -> None:
        """End it as a crash does."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGQUIT)
            await asyncio.to_thread(self._process.wait, _RUN_S)


class Pair:
    """A primary and its standby, and one address that leads to whichever is the primary."""

    def __init__(self, primary: Server, standby: Server) -> None:
        self.primary = primary
        self.standby = standby
        ports = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        self.url = f"postgresql://{ROLE}@{ports}/postgres?target_session_attrs=primary"

    async def cut(self) -> None:
        """Stop the stream: from now on the standby falls behind."""
        await self.standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
        await self.standby.execute("SELECT pg_reload_conf()")
        await until(self._is_cut, "the standby is cut off")

    async def _is_cut(self) -> bool:
        return await self.primary.execute("SELECT FROM pg_stat_replication") == []

    async def fail_over(self) -> None:
        """Crash the primary, and promote the standby to be the primary."""
        await self.primary.end()
        await self.standby.execute("SELECT pg_promote()")
        self.primary = self.standby


@contextmanager
def _ground(*names: str) -> Iterator[list[Server]]:
    """Servers that are not made yet, in directories of their own that are removed."""
    place = MEMORY if MEMORY.is_dir() else None
    root = pathlib.Path(tempfile.mkdtemp(prefix="hookline-servers-", dir=place))
    account = account_of_postgres()
    os.chown(root, account.uid, account.gid)
    programs = find_programs(account, REFUGES).folder
    try:
        yield [Server(root / name, account, programs) for name in names]
    finally:
        shutil.rmtree(root)


@asynccontextmanager
async def server() -> AsyncIterator[Server]:
    """A migrated server."""
    with _ground("one") as (one,):
        try:
            await asyncio.to_thread(one.create)
            await one.start()
            await migrate(one.url)
            yield one
        finally:
            await one.end()


@asynccontextmanager
async def pair(*, is_synchronous: bool) -> AsyncIterator[Pair]:
    """A migrated primary with a standby that streams; neither is left behind."""
    with _ground("one", "two") as (primary, standby):
        try:
            await asyncio.to_thread(primary.create)
            await primary.start()
            await asyncio.to_thread(standby.copy, primary)
            await standby.start()
            if is_synchronous:
                await primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
                await primary.execute("SELECT pg_reload_conf()")
            await migrate(primary.url)
            yield Pair(primary, standby)
        finally:
            await primary.end()
            await standby.end()


def account_of_postgres() -> Account:
    """The account of Postgres and its programs: never root."""
    if os.geteuid() == 0:
        return Account.first_of(SYSTEM_ACCOUNTS)
    return Account.of_uid(os.geteuid())


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
