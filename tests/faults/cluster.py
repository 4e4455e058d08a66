"""A Postgres of a test's own, whose server and backends can be crashed, frozen and crowded out."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import asyncpg

from hookline_service.store.embedded import EmbeddedPostgres
from hookline_service.store.migrations import migrate
from tests.postgres import MEMORY, SETTINGS


class Cluster:
    """One embedded Postgres; its URL stays the same from start to start."""

    def __init__(self, directory: pathlib.Path, settings: dict[str, str]) -> None:
        self._postgres = EmbeddedPostgres(directory, settings=SETTINGS | settings)

    @property
    def url(self) -> str:
        """Of its database; while it runs."""
        return self._postgres.url

    @property
    def postmaster_pid(self) -> int:
        """Its first process."""
        return int((self._postgres.cluster / "postmaster.pid").read_text().split("\n", 1)[0])

    async def start(self) -> None:
        """Start it, recovering from a crash."""
        await self._postgres.start()

    async def crash(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """End it as `pg_ctl stop -m immediate` does, or by another signal; it stays down.

        After a SIGKILL its backends first finish what they are at.
        """
        os.kill(self.postmaster_pid, number)
        await self._postgres.stop()

    async def remove(self) -> None:
        """Stop it, and leave nothing behind."""
        await self._postgres.remove()

    async def backends(self, like: str = "hookline %") -> dict[int, str]:
        """The sessions of Hookline: the process of each backend, and its name."""
        connection = await asyncpg.connect(self.url)
        try:
            rows = await connection.fetch(
                "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE $1",
                like,
            )
        finally:
            await connection.close()
        return {row["pid"]: row["application_name"] for row in rows}

    async def freeze(self, name: str) -> int:
        """Stop a session's backend while it waits for its client; its process id.

        One that was stopped at work may hold a lock inside Postgres that every commit needs: then
        the whole server is frozen, which is another fault. It is let go, and tried again.
        """
        while True:
            for pid in await self.backends(name):
                if await self._is_stopped(pid):
                    return pid

    async def freeze_all(self, name: str) -> set[int]:
        """The same of every backend of a session or a pool, for all nodes."""
        stopped: set[int] = set()
        while left := (await self.backends(name)).keys() - stopped:
            stopped |= {pid for pid in left if await self._is_stopped(pid)}
        return stopped

    async def _is_stopped(self, pid: int) -> bool:
        """Stop a backend; False: it was at work, or is gone."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            if await self._waits_for_its_client(pid):
                return True
            os.kill(pid, signal.SIGCONT)
        return False

    async def _waits_for_its_client(self, pid: int) -> bool:
        try:
            async with asyncio.timeout(1):
                connection = await asyncpg.connect(self.url)
                try:
                    event = await connection.fetchval(
                        "SELECT wait_event FROM pg_stat_activity WHERE pid = $1", pid
                    )
                finally:
                    connection.terminate()
        except TimeoutError:
            return False
        return bool(event == "ClientRead")

    @asynccontextmanager
    async def crowded(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """While inside, foreign sessions hold every free connection; yields one of them."""

        def foreign_connection() -> Awaitable[asyncpg.Connection[asyncpg.Record]]:
            return asyncpg.connect(self.url, server_settings={"application_name": "foreign"})

        connections = [await foreign_connection()]
        is_full = asyncio.Event()

        async def crowd() -> None:
            while True:
                try:
                    connections.append(await foreign_connection())
                except asyncpg.TooManyConnectionsError:
                    is_full.set()

        crowding = asyncio.create_task(crowd())
        try:
            async with asyncio.timeout(20):
                await is_full.wait()
            yield connections[0]
        finally:
            crowding.cancel()
            await asyncio.gather(crowding, return_exceptions=True)
            for connection in connections:
                await connection.close()


@contextmanager
def _directory() -> Iterator[pathlib.Path]:
    """A new directory, in memory where there is some; as root, Postgres's user can pass through."""
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="hookline-test-", dir=place) as name:
        pathlib.Path(name).chmod(0o711)
        yield pathlib.Path(name, "data")


@asynccontextmanager
async def cluster(**settings: str) -> AsyncIterator[Cluster]:
    """A cluster that runs and has today's schema. Nothing of it is left afterwards."""
    with _directory() as directory:
        server = Cluster(directory, settings)
        try:
            await server.start()
            await migrate(server.url)
            yield server
        finally:
            await server.remove()
