"""Retention of the audit log: old entries go, and what is left begins where a node signed."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from hookline_service.cli import main
from hookline_service.domain.audit import BrokenChainError, ChainHead
from hookline_service.pipeline.upkeep.audit_pruner import AuditPruner
from hookline_service.pipeline.upkeep.audit_sealer import AuditSealer
from hookline_service.pipeline.upkeep.chores import Upkeep
from hookline_service.store.audit import AuditLog
from hookline_service.store.audit_checkpoints import (
    PRUNED_ORIGIN,
    AuditCheckpoints,
    CheckpointKey,
    CheckpointVerifier,
)
from hookline_service.store.database import RejectedError
from hookline_service.store.secrets import SecretBox
from hookline_service.store.upkeep import UpkeepStore
from hookline_service.telemetry.meters import Meters
from tests.store.audit_log import REWRITE, tamper
from tests.store.control_plane import KEY, ControlPlane, control_plane

RETENTION_DAYS = 30
OLD = datetime.now(UTC) - timedelta(days=RETENTION_DAYS + 1)


@pytest.fixture(autouse=True)
def _process_is_unchanged(unchanged_process: None) -> None:
    """Commands run in the process of the tests here."""


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    """Four entries that were signed before the retention began, and then two."""
    async with control_plane(database_url) as plane:
        for name in ("b", "c", "d"):
            await plane.tenants.create(name, "", {})
        await sign_head(plane, OLD)
        for name in ("e", "f"):
            await plane.tenants.create(name, "", {})
        yield plane


async def key_of(plane: ControlPlane) -> CheckpointKey:
    return await AuditCheckpoints(plane.database).load_or_create_key(SecretBox([KEY]), OLD)


async def sign_head(plane: ControlPlane, moment: datetime) -> ChainHead:
    """Add a checkpoint of the head, as a node did at a moment."""
    head = await AuditLog(plane.database).head()
    note = (await key_of(plane)).sign(head, moment)
    await AuditCheckpoints(plane.database).add(head, note)
    return head


def pruner_of(
    plane: ControlPlane, *, days: int = RETENTION_DAYS, batch: int = 1_000
) -> AuditPruner:
    database = plane.database
    return AuditPruner(
        AuditLog(database),
        AuditCheckpoints(database),
        SecretBox([KEY]),
        retention_days=days,
        batch=batch,
        meters=METERS,
    )


METERS = Meters()


async def prune_all(plane: ControlPlane, *, days: int = RETENTION_DAYS, batch: int = 1_000) -> None:
    pruner = pruner_of(plane, days=days, batch=batch)
    while await pruner.prune():
        pass


async def sealer_of(plane: ControlPlane) -> AuditSealer:
    """The sealer of a node that starts."""
    return AuditSealer(
        AuditLog(plane.database), AuditCheckpoints(plane.database), await key_of(plane)
    )


async def sequences(plane: ControlPlane) -> list[int]:
    rows = await plane.rows("SELECT sequence FROM audit_entries ORDER BY sequence")
    return [row["sequence"] for row in rows]


async def command(plane: ControlPlane, action: str, *arguments: str, key: bool = True) -> int:
    """Run `hookline audit` in a thread, with the master key or without; return its exit code."""

    def run() -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOOKLINE_DATABASE_URL", plane.database.url)
            if key:
                patch.setenv("HOOKLINE_MASTER_KEY", base64.b64encode(KEY).decode())
            return main(["audit", action, *arguments])

    return await asyncio.to_thread(run)


async def test_entries_past_their_retention_are_pruned_and_the_rest_is_verified(
    plane: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    await prune_all(plane)
    assert await sequences(plane) == [5, 6]
    head = await sign_head(plane, datetime.now(UTC))
    capsys.readouterr()
    for with_key in (True, False):
        assert await command(plane, "verify", key=with_key) == 0
        assert capsys.readouterr().out.splitlines()[:2] == [
            "OK: 2 entries, each follows from the one before",
            "entries up to 4 were pruned after their retention",
        ]
    assert await (await sealer_of(plane)).seal() == head


async def test_a_retention_of_zero_keeps_every_entry(plane: ControlPlane) -> None:
    await prune_all(plane, days=0)
    assert await sequences(plane) == [1, 2, 3, 4, 5, 6]


async def test_entries_within_their_retention_are_kept(plane: ControlPlane) -> None:
    await sign_head(plane, datetime.now(UTC))
    await prune_all(plane)
    assert await sequences(plane) == [5, 6]


async def test_a_log_that_ends_before_its_checkpoint_is_not_pruned(plane: ControlPlane) -> None:
    await tamper(plane.database, "DELETE FROM audit_entries WHERE sequence >= 4")
    await prune_all(plane)
    assert await sequences(plane) == [1, 2, 3]


async def test_an_entry_without_an_old_checkpoint_is_kept(plane: ControlPlane) -> None:
    """Whatever its row says: the owner of the tables can write any time into it."""
    await sign_head(plane, datetime.now(UTC))
    await tamper(plane.database, "UPDATE audit_entries SET create_time = '2001-01-01'")
    await tamper(plane.database, REWRITE)
    await prune_all(plane)
    assert await sequences(plane) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
async def test_pruning_in_batches_ends_at_the_same_entry(plane: ControlPlane, batch: int) -> None:
    await prune_all(plane, batch=batch)
    assert await sequences(plane) == [5, 6]
    checkpoints = AuditCheckpoints(plane.database)
    verifier = (await key_of(plane)).verifier
    assert [one.head.sequence async for one in checkpoints.walk(verifier)] == [4]


async def test_a_log_of_which_every_entry_was_pruned_goes_on(plane: ControlPlane) -> None:
    await sign_head(plane, OLD + timedelta(hours=1))
    await prune_all(plane)
    assert await sequences(plane) == []
    assert await command(plane, "verify") == 0
    sealer = await sealer_of(plane)
    assert (await sealer.seal()).sequence == 6
    await plane.tenants.create("g", "", {})
    assert (await sealer.seal()).sequence == 7
    assert await command(plane, "verify") == 0


async def test_a_node_frozen_for_longer_than_the_retention_seals_again(
    plane: ControlPlane,
) -> None:
    sealer = await sealer_of(plane)
    await sealer.seal()
    for name in ("g", "h"):
        await plane.tenants.create(name, "", {})
    await tamper(plane.database, "DELETE FROM audit_checkpoints WHERE sequence > 4")
    head = await sign_head(plane, OLD + timedelta(hours=1))
    await prune_all(plane)
    await plane.tenants.create("i", "", {})
    assert head.sequence == 8
    assert (await sealer.seal()).sequence == 9


async def test_a_changed_log_is_not_pruned(plane: ControlPlane) -> None:
    """The evidence stays, and the divergence is counted."""
    before = METERS.audit_log_diverged.values.get((), 0)
    await tamper(plane.database, REWRITE)
    await prune_all(plane)
    assert await sequences(plane) == [1, 2, 3, 4, 5, 6]
    assert METERS.audit_log_diverged.values[()] == before + 1


async def test_the_chores_prune_the_audit_log(plane: ControlPlane) -> None:
    upkeep = Upkeep(UpkeepStore(plane.database.session("upkeep")), audit=pruner_of(plane))
    assert await upkeep.do_chores()
    await upkeep.stop()
    assert await sequences(plane) == [5, 6]


# ------------------------------------------------------------------------------------- forging


def note_of(seed: bytes | None, head: ChainHead, key: CheckpointKey) -> str:
    signer = key if seed is None else CheckpointKey(seed)
    return signer.sign(head, OLD, PRUNED_ORIGIN)


async def state(plane: ControlPlane, sequence: int, note: str | None) -> None:
    """Cut the log's beginning off as the owner of the tables can, with a statement or without."""
    await tamper(plane.database, f"DELETE FROM audit_entries WHERE sequence <= {sequence}")  # noqa: S608
    await tamper(plane.database, f"DELETE FROM audit_checkpoints WHERE sequence < {sequence}")  # noqa: S608
    await tamper(plane.database, "DELETE FROM audit_pruned")
    if note is not None:
        await plane.database.fetch(
            "INSERT INTO audit_pruned (sequence, note) VALUES ($1, $2)", sequence, note
        )


async def forgery(plane: ControlPlane, kind: str) -> tuple[str | None, str]:
    """A statement of entry 3, and what is said of it."""
    key = await key_of(plane)
    hashes = [entry.hash async for entry in AuditLog(plane.database).walk(6)]
    three, two = ChainHead(3, hashes[2]), ChainHead(2, hashes[1])
    return {
        "none": (None, "entry 1 is missing; 4 comes instead"),
        "another-key": (
            note_of(b"o" * 32, three, key),
            "the statement of what was pruned is forged: another key has signed it, or none",
        ),
        "another-hash": (
            note_of(None, ChainHead(3, b"h" * 32), key),
            "entry 4 does not fit its hash: it, or the hash before it, was changed",
        ),
        "changed-text": (
            note_of(None, two, key).replace("\n2\n", "\n3\n"),
            "the statement of what was pruned is forged: its signature is not that of its text",
        ),
        "earlier-entry": (note_of(None, two, key), "entry 3 is missing; 4 comes instead"),
        "later-entry": (
            note_of(None, ChainHead(4, hashes[3]), key),
            "entry 4 lies before the first, 5",
        ),
        "checkpoint": (
            key.sign(three, OLD),
            "the statement of what was pruned is forged: it is of another log, or of another kind",
        ),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "none",
        "another-key",
        "another-hash",
        "changed-text",
        "earlier-entry",
        "later-entry",
        "checkpoint",
    ],
)
async def test_a_log_that_begins_elsewhere_is_refused(
    plane: ControlPlane, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """By `verify`, by `export` but for the hash of an entry, and by nodes, that sign no more."""
    note, said = await forgery(plane, kind)
    await sign_head(plane, datetime.now(UTC))
    await state(plane, 3, note)
    assert await command(plane, "verify") == 1
    assert said in capsys.readouterr().err
    if kind != "another-hash":
        assert await command(plane, "export") == 1
        assert said in capsys.readouterr().err
        with pytest.raises(BrokenChainError, match=said):
            await (await sealer_of(plane)).seal()
    with pytest.raises(BrokenChainError, match=said):
        await pruner_of(plane)._prune(datetime.now(UTC))  # noqa: SLF001 - its error is logged


async def test_a_running_node_signs_no_more_once_the_beginning_is_cut_off(
    plane: ControlPlane,
) -> None:
    sealer = await sealer_of(plane)
    await sealer.seal()
    await state(plane, 3, None)
    with pytest.raises(BrokenChainError, match="entry 1 is missing; 4 comes instead"):
        await sealer.seal()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit_entries WHERE sequence = 5",
        "DELETE FROM audit_checkpoints WHERE sequence = 4",
        "DELETE FROM audit_pruned",
        "TRUNCATE audit_pruned",
    ],
)
async def test_the_database_refuses_to_delete_what_no_statement_covers(
    plane: ControlPlane, statement: str
) -> None:
    await prune_all(plane)
    with pytest.raises(RejectedError, match="is only ever appended to"):
        await plane.database.fetch(statement)


async def test_the_statement_never_goes_back(plane: ControlPlane) -> None:
    await prune_all(plane)
    with pytest.raises(RejectedError, match="never goes back"):
        await plane.database.fetch("UPDATE audit_pruned SET sequence = 3")
    key = await key_of(plane)
    earlier = ChainHead(3, b"h" * 32)
    checkpoints = AuditCheckpoints(plane.database)
    assert not await checkpoints.prune(earlier, key.sign(earlier, OLD, PRUNED_ORIGIN))


# -------------------------------------------------------------------------------- output


async def test_an_export_of_a_pruned_log_begins_with_the_statement(
    plane: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    await prune_all(plane)
    await sign_head(plane, datetime.now(UTC))
    capsys.readouterr()
    assert await command(plane, "export") == 0
    first, *entries, last = map(json.loads, capsys.readouterr().out.splitlines())
    verifier = CheckpointVerifier.parse(str((await key_of(plane)).verifier))
    assert verifier.read(first["pruned"], PRUNED_ORIGIN).head.sequence == 4
    assert [int(entry["sequence"]) for entry in entries] == [5, 6]
    assert verifier.read(last["checkpoint"]).head.sequence == 6

    assert await command(plane, "export", "--behind", "5") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("sequence") for line in lines] == ["6", None]


async def test_a_head_noted_before_the_first_kept_entry_cannot_be_compared(
    plane: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = [ChainHead(e.sequence, e.hash) async for e in AuditLog(plane.database).walk(6)]
    await prune_all(plane)
    await sign_head(plane, datetime.now(UTC))
    assert await command(plane, "verify", "--head", str(heads[2])) == 2
    assert "the noted head lies before entry 5" in capsys.readouterr().err
    assert await command(plane, "verify", "--head", str(heads[3])) == 0
    assert await command(plane, "verify", "--head", str(heads[4])) == 0
    other = ChainHead(4, b"h" * 32)
    assert await command(plane, "verify", "--head", str(other)) == 1
    assert "another hash than was noted" in capsys.readouterr().err
