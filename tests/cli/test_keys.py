"""`hookline keys`: its output while a master key is rotated."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator

import pytest

from hookline_service.cli import main
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.secrets import SecretBox, key_id_of
from hookline_service.store.subscriptions import Subscriptions
from tests.postgres import execute
from tests.store.audit_log import entries_of, newest, shown, verified
from tests.store.control_plane import KEY, ControlPlane, control_plane

NEW_KEY = b"n" * 32
OLD_ID, NEW_ID = key_id_of(KEY).hex(), key_id_of(NEW_KEY).hex()


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        yield plane


def run_keys(database_url: str, *arguments: str, keys: tuple[bytes, ...]) -> int:
    """`hookline keys …` on the test's database; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOOKLINE_DATABASE_URL", database_url)
        patch.setenv("HOOKLINE_MASTER_KEY", ",".join(base64.b64encode(k).decode() for k in keys))
        return main(["keys", *arguments])


async def in_thread(database_url: str, *arguments: str, keys: tuple[bytes, ...]) -> int:
    """The same from within a running loop: the command has one of its own."""
    return await asyncio.to_thread(run_keys, database_url, *arguments, keys=keys)


async def test_a_rotation_prints_its_result_and_the_keys_no_longer_in_use(
    plane: ControlPlane, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await plane.create()
    assert await in_thread(database_url, "rotate-master", keys=(NEW_KEY, KEY)) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"writes with {NEW_ID}, reads {OLD_ID} too",
        "sealed again: 1 data keys, 0 secrets without one, 0 keys of the deployment",
        f"in use: {NEW_ID} seals 1 data keys",
        f"not in use: {OLD_ID}; remove it from HOOKLINE_MASTER_KEY once no node has it first",
    ]
    assert printed.err == ""
    for key in (KEY, NEW_KEY):
        assert base64.b64encode(key).decode() not in printed.out

    assert await in_thread(database_url, "rotate-master", keys=(NEW_KEY,)) == 0
    assert "sealed again: 0 data keys" in capsys.readouterr().out


async def test_without_the_old_key_nothing_is_rotated(
    plane: ControlPlane, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await plane.create()
    assert await in_thread(database_url, "rotate-master", keys=(NEW_KEY,)) == 2
    printed = capsys.readouterr().err
    assert OLD_ID in printed
    assert "forget-master" in printed


async def test_a_lost_key_is_forgotten_by_its_id(
    plane: ControlPlane, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = await plane.create()
    assert await in_thread(database_url, "forget-master", OLD_ID, keys=(NEW_KEY,)) == 0
    assert "may go" not in capsys.readouterr().out
    assert await in_thread(database_url, "rotate-master", keys=(NEW_KEY,)) == 1
    printed = capsys.readouterr()
    assert f"in use: {OLD_ID} seals 1 data keys" in printed.out
    assert "left as it was" in printed.err
    both = TenantSecrets(SecretBox([NEW_KEY, KEY]))
    assert await Subscriptions(plane.database, both).get("acme", "orders") == made


@pytest.mark.parametrize(
    "key_id,code,words",
    [("no id", 2, "not a key id"), (NEW_ID, 2, "is not lost"), ("0" * 16, 1, "nothing was sealed")],
)
async def test_a_key_that_is_not_lost_is_not_forgotten(
    database_url: str, capsys: pytest.CaptureFixture[str], key_id: str, code: int, words: str
) -> None:
    assert await in_thread(database_url, "forget-master", key_id, keys=(NEW_KEY,)) == code
    assert words in capsys.readouterr().err


def test_keys_need_a_database_and_a_master_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOOKLINE_DATABASE_URL", "HOOKLINE_MASTER_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["keys", "rotate-master"]) == 2
    printed = capsys.readouterr().err
    assert "HOOKLINE_DATABASE_URL is not set" in printed
    assert "HOOKLINE_MASTER_KEY is not set" in printed


@pytest.mark.parametrize("asked", [("rotate-master",), ("forget-master", OLD_ID)])
async def test_an_older_schema_is_reported(
    database_url: str, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...]
) -> None:
    await execute(database_url, "DELETE FROM schema_migrations WHERE number = 6")
    assert await in_thread(database_url, *asked, keys=(NEW_KEY,)) == 2
    assert "run `hookline migrate`" in capsys.readouterr().err


async def test_commands_on_the_database_are_audited_with_their_account(
    plane: ControlPlane, database_url: str
) -> None:
    await plane.create()
    before = len(await entries_of(plane.database))
    for _ in range(2):  # the second one has nothing to do
        assert await in_thread(database_url, "rotate-master", keys=(NEW_KEY, KEY)) == 0
    (entry,) = (await entries_of(plane.database))[before:]
    assert (entry.principal, entry.method) == ("hookline", "hookline keys rotate-master")
    assert (entry.resource, shown(entry.after_json)) == (f"masterKeys/{NEW_ID}", {"seals_anew": 1})
    assert entry.remote_address.endswith(f"@{socket.gethostname()}")
    assert await in_thread(database_url, "forget-master", NEW_ID, keys=(KEY,)) == 0
    entry = await newest(plane.database)
    assert (entry.method, entry.resource) == (
        "hookline keys forget-master",
        f"masterKeys/{NEW_ID}",
    )
    await verified(plane.database)


@pytest.mark.parametrize("arguments", [("rotate-master",), ("forget-master", "0" * 16)])
async def test_an_outdated_schema_must_be_migrated_first(
    plane: ControlPlane,
    database_url: str,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    await plane.create()
    entries = await entries_of(plane.database)
    await plane.rows("DELETE FROM schema_migrations WHERE number > 1")
    assert await in_thread(database_url, *arguments, keys=(NEW_KEY, KEY)) == 2
    assert "run `hookline migrate`" in capsys.readouterr().err
    assert await entries_of(plane.database) == entries
