"""`hookline audit`: its output, and its exit codes."""

from __future__ import annotations

import asyncio
import base64
import json
import pathlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from hookline_service.cli import main
from hookline_service.domain.audit import ChainWalk
from hookline_service.pipeline.upkeep.audit_sealer import AuditSealer
from hookline_service.store.audit import AuditLog
from hookline_service.store.audit_checkpoints import AuditCheckpoints, CheckpointVerifier
from hookline_service.store.secrets import SecretBox
from tests.postgres import execute
from tests.store.audit_log import CUT_OFF, ENTRY_1000, FORGE, REWRITE, tamper
from tests.store.control_plane import KEY, ControlPlane, control_plane

ENTRY_M5 = ENTRY_1000.replace("1000", "-5")
APPEND = "audit_append on audit_drafts"
WITHOUT_ENTRY = """ALTER TABLE audit_drafts DISABLE TRIGGER audit_append;
                   INSERT INTO audit_drafts (entry) VALUES ('{}')"""
UNCHECKED = "signatures were not checked: that needs --key, or the master key"


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        for name in ("b", "c", "d"):
            await plane.tenants.create(name, "", {})
        yield plane


async def verify(database_url: str | None, *arguments: str, action: str = "verify") -> int:
    """Its exit code, from within a running loop: the command has one of its own."""

    def run() -> int:
        with pytest.MonkeyPatch.context() as patch:
            if database_url is not None:
                patch.setenv("HOOKLINE_DATABASE_URL", database_url)
            return main(["audit", action, *arguments])

    return await asyncio.to_thread(run)


@pytest.fixture
async def key(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key by which a node has signed the head; the command has the master key."""
    monkeypatch.setenv("HOOKLINE_MASTER_KEY", base64.b64encode(KEY).decode())
    checkpoints = AuditCheckpoints(plane.database)
    key = await checkpoints.load_or_create_key(SecretBox([KEY]), datetime.now(UTC))
    await AuditSealer(AuditLog(plane.database), checkpoints, key).seal()
    return str(key.verifier)


async def head_of(plane: ControlPlane) -> str:
    return str(await AuditLog(plane.database).head())


async def test_an_intact_log_is_ok_and_its_head_is_printed(
    plane: ControlPlane, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    head = await head_of(plane)
    assert await verify(database_url) == 0
    assert capsys.readouterr().out.splitlines() == [
        "OK: 4 entries, each follows from the one before",
        UNCHECKED,
        f"store this head: {head}",
    ]
    await plane.tenants.create("e", "", {})
    assert await verify(database_url, "--head", head) == 0
    assert capsys.readouterr().out.splitlines() == [
        "OK: 5 entries, each follows from the one before",
        f"it continues from the head {head}",
        UNCHECKED,
        f"store this head: {await head_of(plane)}",
    ]


async def test_an_empty_log_is_ok(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await verify(database_url) == 0
    assert capsys.readouterr().out.splitlines() == [
        "OK: 0 entries, each follows from the one before",
        UNCHECKED,
    ]


@pytest.mark.parametrize(
    "statement, said",
    [
        (
            "UPDATE audit_entries SET principal = 'other' WHERE sequence = 2",
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
        ("DELETE FROM audit_head", "broken at 0: the log has 0 heads instead of one"),
        (ENTRY_1000, "broken at 1000: entry 1000 lies behind the head, which says 4"),
        (
            f"ALTER TABLE audit_entries DROP CONSTRAINT audit_entries_sequence_check;{ENTRY_M5}",
            "broken at -5: entry -5 lies before the first, 1",
        ),
        (
            f"{WITHOUT_ENTRY}; ALTER TABLE audit_drafts ENABLE TRIGGER audit_append",
            "broken at 4: 1 drafts were committed and are no entries: changes are missing",
        ),
        (
            f"{WITHOUT_ENTRY}; TRUNCATE audit_drafts",
            f"broken at 4: triggers are missing or disabled: {APPEND}; changes may be missing",
        ),
    ],
)
async def test_tampering_is_reported_and_exits_with_1(
    plane: ControlPlane,
    database_url: str,
    capsys: pytest.CaptureFixture[str],
    statement: str,
    said: str,
) -> None:
    await tamper(plane.database, statement)
    assert await verify(database_url) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"hookline: the audit log is {said}\n"


async def test_a_truncated_log_is_detected_by_a_noted_head(
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
async def test_an_invalid_head_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["audit", "verify", "--head", text])
    assert ended.value.code == 2
    assert "is not SEQUENCE:HASH" in capsys.readouterr().err


async def test_missing_database_is_reported_with_a_remedy(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await verify(None, "--data-dir", str(tmp_path)) == 2
    assert "no `hookline dev` runs in" in capsys.readouterr().err


async def test_an_unreachable_database_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await verify("postgresql://127.0.0.1:1/hookline") == 2
    assert capsys.readouterr().err.startswith("hookline: the database cannot be reached (")


async def test_an_older_schema_is_reported(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await execute(database_url, "DELETE FROM schema_migrations WHERE number = 5")
    assert await verify(database_url) == 2
    assert "run `hookline migrate`" in capsys.readouterr().err


async def test_checkpoints_are_verified_by_the_master_key_or_a_verifier_key(
    plane: ControlPlane,
    database_url: str,
    key: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await plane.tenants.create("e", "", {})
    said = f"signed up to 4 by {key}; 1 entries are newer"
    assert await verify(database_url) == 0
    assert capsys.readouterr().out.splitlines()[1] == said
    monkeypatch.delenv("HOOKLINE_MASTER_KEY")
    assert await verify(database_url, "--key", key) == 0
    assert capsys.readouterr().out.splitlines()[1] == said


@pytest.mark.parametrize(
    "statement, said",
    [
        (REWRITE, "broken at 4: entry 4 has another hash than the one that was signed"),
        (CUT_OFF, "broken at 4: entry 4 is missing, and all that came after it: there were 4"),
        (
            FORGE,
            "broken at 4: checkpoint 4 is forged: its signature is not that of its text",
        ),
        ("DELETE FROM audit_checkpoints", "broken at 0: all checkpoints were removed"),
        (
            "DELETE FROM deployment_keys WHERE purpose = 'audit checkpoints'",
            "broken at 0: the key that signs checkpoints was removed",
        ),
    ],
    ids=["rewritten", "cut-off", "forged", "unsigned", "no-key"],
)
async def test_a_change_of_signed_entries_is_reported(
    plane: ControlPlane,
    database_url: str,
    key: str,
    capsys: pytest.CaptureFixture[str],
    statement: str,
    said: str,
) -> None:
    """Each of these fits its own hashes, or removes what would reveal it."""
    assert key
    await tamper(plane.database, statement)
    assert await verify(database_url) == 1
    assert capsys.readouterr().err == f"hookline: the audit log is {said}\n"


@pytest.mark.parametrize("moved", ["- interval '61 s'", "+ interval '1 h'"])
async def test_an_entry_that_no_node_signed_in_time_is_reported(
    plane: ControlPlane,
    database_url: str,
    key: str,
    capsys: pytest.CaptureFixture[str],
    moved: str,
) -> None:
    """Rolled back to an older checkpoint, and rewritten from there; or with a time of its own."""
    assert key
    await tamper(plane.database, "DELETE FROM audit_checkpoints WHERE sequence > 0")
    change = f"UPDATE audit_entries SET create_time = create_time {moved}"  # noqa: S608 - ours
    await tamper(plane.database, change)
    await tamper(plane.database, REWRITE)
    assert await verify(database_url) == 1
    assert "entry 1 of" in (said := capsys.readouterr().err)
    assert "is not signed, which a node does within 60 s" in said


async def test_an_export_has_all_hashed_fields_and_ends_with_the_newest_checkpoint(
    plane: ControlPlane, database_url: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await verify(database_url, action="export") == 0
    *entries, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [int(entry["sequence"]) for entry in entries] == [1, 2, 3, 4]
    head = CheckpointVerifier.parse(key).read(last["checkpoint"]).head
    walk = ChainWalk()
    for stored, entry in zip(
        [one async for one in AuditLog(plane.database).walk(4)], entries, strict=True
    ):
        walk.follow(stored)
        assert base64.b64decode(entry["hash"]) == stored.hash
        assert (entry["principal"], entry["resource"]) == (stored.principal, stored.resource)
    assert walk.head == head

    assert await verify(database_url, "--behind", "3", action="export") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


async def test_an_export_of_a_log_without_its_newest_entries_fails(
    plane: ControlPlane, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await tamper(plane.database, "DELETE FROM audit_entries WHERE sequence = 4")
    assert await verify(database_url, action="export") == 1
    shown = capsys.readouterr()
    assert "entry 4 is missing, or was pruned during the export" in shown.err
    assert "checkpoint" not in shown.out


async def test_an_invalid_verifier_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["audit", "verify", "--key", "hookline-audit+0+AAAA"])
    assert "is not a key as `verify` prints it" in capsys.readouterr().err
