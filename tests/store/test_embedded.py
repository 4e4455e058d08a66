"""The embedded Postgres: start, kill, adoption, recovery and isolation from other users."""

import asyncio
import os
import signal
from pathlib import Path

import asyncpg
import pytest

from hookline_service.store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from hookline_service.store.embedded.account import Account
from hookline_service.store.embedded.postmaster import (
    Postmaster,
    log_tail,
    program_by_arguments,
    program_of,
)
from hookline_service.store.embedded.programs import copy_package, find_package
from tests.store.embedded_rig import (
    account_of,
    as_root_only,
    make_ground,
    mode_of,
    other_process_in,
    owner,
    postmaster_of,
    socket_dir_of,
    started,
    working_directories,
)
from tests.waiting import PATIENCE_S, until

ground = pytest.fixture(make_ground)


class TestLife:
    async def test_data_survives_a_stop(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        async with started(postgres) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
            first = postmaster_of(postgres)
        assert not first.is_alive
        async with started(postgres) as connection:
            assert await connection.fetchval("SELECT number FROM kept") == 7
            assert postgres.adopted is False

    async def test_durability_and_locale_settings_are_fixed(self, ground: Path) -> None:
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

    async def test_start_recovers_after_a_killed_postmaster(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        async with started(postgres) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
            os.kill(postmaster_of(postgres).pid, signal.SIGKILL)
            await until(connection.is_closed, "the connection ended")
        async with started(postgres) as connection:
            assert await connection.fetchval("SELECT number FROM kept") == 7

    async def test_start_waits_for_backends_of_a_killed_postmaster(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        async with started(postgres) as connection:
            backend = connection.get_server_pid()
            os.kill(backend, signal.SIGSTOP)
            os.kill(postmaster_of(postgres).pid, signal.SIGKILL)
            connection.terminate()
        restart = asyncio.create_task(postgres.start())
        await until(
            lambda: "shared memory block" in log_tail(postgres.cluster), "the start was refused"
        )
        os.kill(backend, signal.SIGCONT)
        await restart
        await postgres.stop()

    async def test_incomplete_cluster_is_created_again(self, ground: Path) -> None:
        draft = ground / "data" / "postgres.new"
        draft.mkdir(parents=True)
        (ground / "data").chmod(0o711)
        (draft / "PG_VERSION").write_text("18\n")
        async with started(EmbeddedPostgres(ground / "data")) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        assert not draft.exists()

    @pytest.mark.parametrize("moment", ["postgres.new/PG_VERSION", "postgres/start.log"])
    async def test_cancelled_start_leaves_no_process_or_draft(
        self, ground: Path, moment: str
    ) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        start = asyncio.create_task(postgres.start())
        await until((ground / "data" / moment).exists, moment)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert [cwd for _, cwd in working_directories() if cwd.is_relative_to(ground)] == []
        assert {path.name for path in (ground / "data").iterdir()} == {"postgres", "postgres.lock"}
        async with started(postgres):
            assert postgres.adopted is False

    async def test_stop_does_not_wait_for_an_open_transaction(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        connection = await asyncpg.connect(await postgres.start())
        await connection.execute("BEGIN")
        await asyncio.wait_for(postgres.stop(), PATIENCE_S)
        await until(connection.is_closed, "the connection ended")
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
        await until(connection.is_closed, "the connection ended")
        assert Postmaster.find(postgres.cluster) is None

    @pytest.mark.parametrize("unlike", ["settings", "program", "socket"])
    async def test_postgres_with_other_settings_program_or_socket_is_restarted(
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

    async def test_another_process_with_the_recorded_id_is_left_alone(self, ground: Path) -> None:
        postgres, other = EmbeddedPostgres(ground / "data"), EmbeddedPostgres(ground / "other")
        await postgres.start()
        await postgres.stop()
        # Two processes of the same account, so that Postgres itself would refuse to start: the same
        # program in another directory, another program in the same directory.
        async with started(other) as connection:
            with other_process_in(postgres.cluster) as sleeper:
                for pid in (postmaster_of(other).pid, sleeper.pid):
                    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                        (postgres.cluster / name).write_text(f"{pid}\n{postgres.cluster}\n")
                    async with started(postgres):
                        assert postgres.adopted is False
                assert sleeper.poll() is None
            assert await connection.fetchval("SELECT 1") == 1

    async def test_postmaster_is_identified_without_proc(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        async with started(postgres):
            pid = postmaster_of(postgres).pid
            found = program_by_arguments(pid, postgres.cluster)
            assert found == program_of(pid, postgres.cluster)
            assert program_by_arguments(pid, ground / "other") is None
            assert program_by_arguments(os.getpid(), postgres.cluster) is None
        assert program_by_arguments(pid, postgres.cluster) is None


class TestSharing:
    async def test_one_of_two_concurrent_starts_succeeds(self, ground: Path) -> None:
        owners = await asyncio.gather(owner(ground / "data"), owner(ground / "data"))
        [winner] = [each for each in owners if "url" in each.said]
        [loser] = [each for each in owners if "error" in each.said]
        assert f"process {winner.process.pid}, uses {ground / 'data'}" in loser.said["error"]
        await asyncio.gather(winner.stop(), loser.stop())

    async def test_second_instance_in_one_process_is_refused(self, ground: Path) -> None:
        async with started(EmbeddedPostgres(ground / "data")) as connection:
            with pytest.raises(EmbeddedPostgresError, match=f"process {os.getpid()}, uses"):
                await EmbeddedPostgres(ground / "data").start()
            assert await connection.fetchval("SELECT 1") == 1

    @as_root_only
    async def test_other_users_cannot_connect(self, ground: Path) -> None:
        postgres = EmbeddedPostgres(ground / "data")
        async with started(postgres):
            own = account_of(postgres.cluster)
            other_user = Account.first_of(
                [name for name in ("nobody", "daemon") if name != own.name]
            )
            psql = postmaster_of(postgres).program.with_name("psql")
            tries = {
                each.name: each.run([psql, "-c", "SELECT 1", postgres.url], timeout_s=20)
                for each in (own, other_user)
            }
        assert "Peer authentication failed" in tries[own.name].stderr
        assert "Permission denied" in tries[other_user.name].stderr
        assert all(tried.returncode != 0 for tried in tries.values())

    async def test_postgres_is_isolated_from_network_terminal_and_secrets(
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
