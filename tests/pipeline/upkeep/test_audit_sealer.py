"""A node signs the head of the audit log, and no log that does not go on from what was signed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from structlog.testing import CapturingLogger

from hookline_service.domain.audit import BrokenChainError, ChainHead
from hookline_service.pipeline.upkeep.audit_sealer import AuditSealer
from hookline_service.store.audit import AuditLog
from hookline_service.store.audit_checkpoints import AuditCheckpoints
from hookline_service.store.secrets import SecretBox
from tests.store.audit_log import CUT_OFF, REWRITE, tamper
from tests.store.control_plane import KEY, ControlPlane, control_plane
from tests.waiting import until


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        for name in ("b", "c", "d"):
            await plane.tenants.create(name, "", {})
        yield plane


async def sealer_of(plane: ControlPlane) -> AuditSealer:
    """The sealer of a node that starts."""
    checkpoints = AuditCheckpoints(plane.database)
    key = await checkpoints.load_or_create_key(SecretBox([KEY]), datetime.now(UTC))
    return AuditSealer(AuditLog(plane.database), checkpoints, key)


async def signed(plane: ControlPlane) -> list[ChainHead]:
    """Every head that was signed."""
    checkpoints = AuditCheckpoints(plane.database)
    key = await checkpoints.load_key(SecretBox([KEY]))
    assert key is not None
    return [one.head async for one in checkpoints.walk(key.verifier)]


async def test_a_head_is_signed_once_by_all_nodes(plane: ControlPlane) -> None:
    one, two = await sealer_of(plane), await sealer_of(plane)
    first = await AuditLog(plane.database).head()
    assert await one.seal() == await one.seal() == await two.seal() == first
    await plane.tenants.create("e", "", {})
    second = await AuditLog(plane.database).head()
    assert await two.seal() == await one.seal() == second
    assert await signed(plane) == [ChainHead(), first, second]


@pytest.mark.parametrize("statement", [REWRITE, CUT_OFF], ids=["rewritten", "cut-off"])
async def test_a_log_that_was_changed_under_a_node_is_not_signed_again(
    plane: ControlPlane, statement: str
) -> None:
    """Not even where what was signed is removed with it: a node remembers."""
    sealer = await sealer_of(plane)
    await sealer.seal()
    await tamper(plane.database, statement)
    await tamper(plane.database, "DELETE FROM audit_checkpoints WHERE sequence > 0")
    with pytest.raises(BrokenChainError):
        await sealer.seal()
    await plane.tenants.create("e", "", {})
    with pytest.raises(BrokenChainError):
        await sealer.seal()
    assert await signed(plane) == [ChainHead()]


async def test_a_node_that_starts_goes_on_from_what_was_signed_only(plane: ControlPlane) -> None:
    await (await sealer_of(plane)).seal()
    await tamper(plane.database, REWRITE)
    await plane.tenants.create("e", "", {})
    with pytest.raises(BrokenChainError):
        await (await sealer_of(plane)).seal()


async def test_a_running_node_signs_and_logs_heads_and_divergence(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CapturingLogger()
    monkeypatch.setattr("hookline_service.pipeline.upkeep.audit_sealer._log", logger)
    sealer = await sealer_of(plane)
    first = await AuditLog(plane.database).head()
    sealer.start()
    await until(lambda: is_signed(plane, first), "the head is signed")
    await plane.tenants.create("e", "", {})
    second = await AuditLog(plane.database).head()
    await sealer.stop()  # what came last is sealed by the stop
    assert await signed(plane) == [ChainHead(), first, second]
    assert [(call.args, call.kwargs["hash"]) for call in logger.calls] == [
        (("audit_checkpoint_signed",), head.hash.hex()) for head in (first, second)
    ]

    logger.calls.clear()
    await tamper(plane.database, CUT_OFF)
    sealer.start()
    await sealer.stop()
    assert {(call.method_name, call.args) for call in logger.calls} == {
        ("error", ("audit_log_diverged",))
    }


async def is_signed(plane: ControlPlane, head: ChainHead) -> bool:
    return head in await signed(plane)
