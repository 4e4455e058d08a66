"""A real Postgres for every test that asks: a cluster for each worker, a database for each test.

The schema is migrated once for each worker, into a template; a test's database is a copy of it.
With HOOKLINE_TEST_DATABASE, the URL of a server and of a role that may create databases, the suite
runs against that server, whatever its version, instead of the embedded one.
"""

import asyncio
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import asyncpg
import pytest
import uvloop

from hookline_service.store.embedded import EmbeddedPostgres
from hookline_service.store.migrations import migrate

# Every worker has one, beside the processes of the tests. What makes a commit durable stays on.
SETTINGS = {"shared_buffers": "64MB", "max_wal_size": "256MB", "wal_compression": "off"}

# Copying the template costs 9 ms in memory and 85 on a disk, for each test. What the suite asks of
# durability it asks of processes that are killed, never of a machine that loses its memory.
MEMORY = pathlib.Path("/dev/shm")  # noqa: S108 - a private directory is made in it
MEMORY_NEEDED_B = 1 << 30


class PostgresServer:
    """A server on which databases are made and dropped.

    Its calls block, on an event loop of its own: tests with and without a loop can use it.
    """

    def __init__(self, url: str, runner: asyncio.Runner) -> None:
        self.url = url
        self._runner = runner
        self._template = self._new_name("template")

    def url_of(self, database: str) -> str:
        """The URL of another database on this server."""
        return urlsplit(self.url)._replace(path=f"/{database}").geturl()

    @contextmanager
    def migrated(self) -> Iterator[None]:
        """Keep a template with today's schema while inside."""
        self._execute(f'CREATE DATABASE "{self._template}"')
        try:
            self._runner.run(migrate(self.url_of(self._template)))
            yield
        finally:
            self._drop(self._template)

    @contextmanager
    def database(self) -> Iterator[str]:
        """A fresh database with today's schema: its URL. Dropped after, open connections or not."""
        name = self._new_name("test")
        # Copied block by block through the log: no checkpoint, which copying files would need.
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{self._template}" STRATEGY WAL_LOG')
        try:
            yield self.url_of(name)
        finally:
            self._drop(name)

    def _new_name(self, purpose: str) -> str:
        return f"hookline_{purpose}_{secrets.token_hex(6)}"

    def _drop(self, database: str) -> None:
        self._execute(f'DROP DATABASE "{database}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        self._runner.run(execute(self.url, statement))


async def execute(url: str, statement: str) -> None:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@contextmanager
def embedded(runner: asyncio.Runner) -> Iterator[str]:
    """A cluster of our own in a new directory: its URL. Nothing of it is left afterwards."""
    is_roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_NEEDED_B
    place = MEMORY if is_roomy else None
    with tempfile.TemporaryDirectory(prefix="hookline-test-", dir=place) as directory:
        # As root, Postgres runs as another user, which needs access to the path.
        pathlib.Path(directory).chmod(0o711)
        server = EmbeddedPostgres(pathlib.Path(directory, "data"), settings=SETTINGS)
        try:
            yield runner.run(server.start())
        finally:
            runner.run(server.remove())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server of this worker."""
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        url = os.environ.get("HOOKLINE_TEST_DATABASE") or stack.enter_context(embedded(runner))
        server = PostgresServer(url, runner)
        stack.enter_context(server.migrated())
        yield server


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh database with today's schema, for one test: its `postgresql://` URL."""
    with postgres_server.database() as url:
        yield url
