"""Shared parts of the tests of the embedded Postgres: directories, owners, other processes.

`ground = pytest.fixture(make_ground)` gives a test directories of its own, and fails it if a
process is left running in them.
"""

import asyncio
import contextlib
import json
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from hookline_service.store.embedded import EmbeddedPostgres
from hookline_service.store.embedded.account import Account
from hookline_service.store.embedded.postmaster import Postmaster

ROOT = Path(__file__).parents[2]
AS_ROOT = os.geteuid() == 0
WAIT_S = 30.0

as_root_only = pytest.mark.skipif(not AS_ROOT, reason="only root runs Postgres as another user")


def make_ground() -> Iterator[Path]:
    """A short, plain directory that other users can pass through; nothing runs in it afterwards."""
    with tempfile.TemporaryDirectory(prefix="hl-", dir="/tmp") as name:
        path = Path(name).resolve()
        path.chmod(0o711)
        yield path
        here = {pid: cwd for pid, cwd in working_directories() if cwd.is_relative_to(path)}
        left = {pid: cwd for pid, cwd in here.items() if not has_ended(pid)}
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert not left, "processes were left running"


def has_ended(pid: int) -> bool:
    """Return whether a process ends within five seconds; the logger of Postgres ends last."""
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([ended], [], [], 5.0)[0])
    finally:
        os.close(ended)


def working_directories() -> Iterator[tuple[int, Path]]:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(entry.name), (entry / "cwd").readlink()


@contextlib.asynccontextmanager
async def started(postgres: EmbeddedPostgres) -> AsyncIterator[asyncpg.Connection]:
    """Start Postgres, yield a connection, and stop Postgres afterwards."""
    url = await postgres.start()
    try:
        connection = await asyncpg.connect(url)
        try:
            yield connection
        finally:
            await connection.close()
    finally:
        await postgres.stop()


def postmaster_of(postgres: EmbeddedPostgres) -> Postmaster:
    found = Postmaster.find(postgres.cluster)
    assert found is not None
    return found


@contextlib.contextmanager
def other_process_in(cluster: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process that is not Postgres in the cluster's directory, under its account."""
    with subprocess.Popen(
        ["/bin/sleep", "60"], cwd=cluster, **account_of(cluster).identity
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass
class Owner:
    """A process that owns a Postgres, and the first line that it wrote."""

    process: asyncio.subprocess.Process
    said: dict[str, str]

    async def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        async with asyncio.timeout(WAIT_S):
            assert await self.process.wait() == 0

    async def die(self) -> None:
        self.process.kill()
        await self.process.wait()


async def owner(data_dir: Path, *, user: str | None = None, packages: Path = ROOT) -> Owner:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        Path(__file__).with_name("embedded_owner.py"),
        data_dir,
        *([user] if user else []),
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{packages}:{os.environ.get('PYTHONPATH', '')}"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        line = await process.stdout.readline()
    return Owner(process, json.loads(line))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def owner_of(path: Path) -> int:
    return path.stat().st_uid


def account_of(cluster: Path) -> Account:
    return Account.of_uid(owner_of(cluster))


def socket_dir_of(postgres: EmbeddedPostgres) -> Path:
    return Path(parse_qs(urlsplit(postgres.url).query)["host"][0])


def modes_up_from(path: Path) -> dict[Path, tuple[int, int]]:
    """Return mode and owner of a directory and of all its parents."""
    return {
        directory: (mode_of(directory), owner_of(directory)) for directory in (path, *path.parents)
    }
