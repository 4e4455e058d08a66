"""`hookline audit verify`: what whoever looks after the log reads, and what a script goes by."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator

import pytest

from service.cli import main
from service.store.audit import AuditLog
from tests.postgres import execute
from tests.store.audit_log import tamper
from tests.store.control_plane import ControlPlane, control_plane


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        for name in ("b", "c", "d"):
            await plane.tenants.create(name, "", {})
        yield plane


async def verify(database_url: str | None, *arguments: str) -> int:
    """Its exit code, from within a running loop: the command has one of its own."""

    def run() -> int:
        with pytest.MonkeyPatch.context() as patch:
            if database_url is not None:
                patch.setenv("HOOKLINE_DATABASE_URL", database_url)
            return main(["audit", "verify", *arguments])

    return await asyncio.to_thread(run)


async def head_of(plane: ControlPlane) -> str:
    return str(await AuditLog(plane.database).head())


async def test_a_whole_log_is_ok_and_its_head_is_told(
    plane: ControlPlane, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    head = await head_of(plane)
    assert await verify(database_url) == 0
    assert capsys.readouterr().out.splitlines() == [
        "OK: 4 entries, each follows from the one before",
        f"to be noted: {head}",
    ]
    await plane.tenants.create("e", "", {})
    assert await verify(database_url, "--head", head) == 0
    assert capsys.readouterr().out.splitlines() == [
        "OK: 5 entries, each follows from the one before",
        f"it goes on from the noted {head}",
        f"to be noted: {await head_of(plane)}",
    ]


async def test_a_log_of_nothing_is_ok(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await verify(database_url) == 0
    assert capsys.readouterr().out == "OK: 0 entries, each follows from the one before\n"


@pytest.mark.parametrize(
    "statement, said",
    [
        (
            "UPDATE audit_entries SET principal = 'nobody' WHERE sequence = 2",
            "broken at 2: entry 2 does not fit its hash: it, or the hash before it, was changed",
        ),
        (
            "DELETE FROM audit_entries WHERE sequence = 3",
            "broken at 3: entry 3 is missing; 4 comes instead",
        ),
        (
            "DELETE FROM audit_entries WHERE sequence > 2",
            "broken at 3: entry 3 is missing, and all that came after it: there were 4",
        ),
        ("DELETE FROM audit_head", "broken at 0: the log's head is missing"),
    ],
)
async def test_what_was_tampered_with_is_named_and_the_exit_says_so(
    plane: ControlPlane,
    database_url: str,
    capsys: pytest.CaptureFixture[str],
    statement: str,
    said: str,
) -> None:
    await tamper(plane.database, statement)
    assert await verify(database_url) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"hookline: the audit log is {said}\n"


async def test_a_log_that_was_cut_off_head_and_all_is_told_by_the_noted_one(
    plane: ControlPlane, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    noted = await head_of(plane)
    await tamper(
        plane.database,
        """WITH gone AS (DELETE FROM audit_entries WHERE sequence = 4)
           UPDATE audit_head SET sequence = e.sequence, hash = e.hash
           FROM audit_entries e WHERE e.sequence = 3""",
    )
    assert await verify(database_url) == 0
    capsys.readouterr()
    assert await verify(database_url, "--head", noted) == 1
    assert "entry 4 is missing" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["7", "0:" + "0" * 64, "7:abc", "7:" + "G" * 64])
async def test_what_is_no_head_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["audit", "verify", "--head", text])
    assert ended.value.code == 2
    assert "is no SEQUENCE:HASH" in capsys.readouterr().err


async def test_without_a_database_it_says_what_to_do(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await verify(None, "--data-dir", str(tmp_path)) == 2
    assert "no `hookline dev` runs in" in capsys.readouterr().err


async def test_a_database_that_is_not_reached_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await verify("postgresql://127.0.0.1:1/hookline") == 2
    assert capsys.readouterr().err.startswith("hookline: the database cannot be reached (")


async def test_an_older_schema_is_told(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await execute(database_url, "DELETE FROM schema_migrations WHERE number = 5")
    assert await verify(database_url) == 2
    assert "run `hookline migrate`" in capsys.readouterr().err
