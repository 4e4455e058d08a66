"""A PgBouncer between nodes and Postgres, as an unprivileged user, on a port of the loopback."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from hookline_service.store.embedded.account import clean_environment
from tests.faults.servers import account_of_postgres, free_port
from tests.waiting import until

TOOLS = pathlib.Path(__file__).parents[2] / ".tools" / "pgbouncer"
PROGRAM = TOOLS / "usr" / "sbin" / "pgbouncer"

CONFIGURATION = """\
[databases]
{database} = host={host} port={port} user={user} dbname={database}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = {pool_mode}
default_pool_size = 60
max_client_conn = 200
"""


def found() -> pathlib.Path:
    """The PgBouncer that `make test` unpacked. Without one: skipped, and failed where CI is set."""
    if not PROGRAM.exists():
        if os.environ.get("CI"):
            pytest.fail("there is no PgBouncer: `make pgbouncer`")
        pytest.skip("there is no PgBouncer: `make pgbouncer`")
    return PROGRAM


@asynccontextmanager
async def pooler(url: str, pool_mode: str) -> AsyncIterator[str]:
    """The URL by which a database is reached through the pooler, while inside."""
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    database, port = parts.path.removeprefix("/"), free_port()
    account = account_of_postgres()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="hookline-pgbouncer-"))
    file = directory / "pgbouncer.ini"
    file.write_text(
        CONFIGURATION.format(
            database=database,
            host=query.get("host", parts.hostname),
            port=query.get("port", parts.port),
            user=parts.username,
            listen_port=port,
            pool_mode=pool_mode,
        )
    )
    for path in (directory, file):
        os.chown(path, account.uid, account.gid)
    process = subprocess.Popen(  # noqa: ASYNC220 - it is started once, at once
        [str(found()), str(file)],
        **account.identity,
        env=clean_environment() | {"LD_LIBRARY_PATH": str(_libraries())},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    through = f"postgresql://{parts.username}@127.0.0.1:{port}/{database}"

    async def answers() -> bool:
        with suppress(OSError, asyncpg.PostgresError):
            connection = await asyncpg.connect(through, statement_cache_size=0)
            await connection.close()
            return True
        return False

    try:
        await until(answers, "the pooler answers")
        yield through
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


def _libraries() -> pathlib.Path:
    """Of c-ares, which comes in a package of its own."""
    return next(iter(sorted(TOOLS.glob("usr/lib/*-linux-gnu*"))), TOOLS)
