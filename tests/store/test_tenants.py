"""Stored tenants: creation, changes, lists, and deletion of empty tenants only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from hookline_service.domain.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    HooklineError,
    NotFoundError,
    Reason,
)
from hookline_service.domain.ids import LAST_UUID
from hookline_service.domain.tenant import Tenant, TenantState
from tests.pipeline.rival import rival, until_blocked
from tests.store.control_plane import ControlPlane, control_plane
from tests.store.rows import Place, rows_in


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        yield plane


async def test_tenant_is_read_as_created(plane: ControlPlane) -> None:
    made = await plane.tenants.create("globex", "Globex ☂", {"plan": "gold"})
    assert made == await plane.tenants.get("globex")
    assert (made.display_name, made.labels, made.state) == (
        "Globex ☂",
        {"plan": "gold"},
        TenantState.ACTIVE,
    )
    now = await plane.value("SELECT clock_timestamp()")
    assert made.create_time is not None
    assert abs((now - made.create_time).total_seconds()) < 60
    assert made.uid.version == 7


async def test_concurrent_creations_with_one_id_create_one_tenant(plane: ControlPlane) -> None:
    asked = [plane.tenants.create("globex", str(n), {}) for n in range(8)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, AlreadyExistsError)]
    assert len(refused) == 7
    assert {error.reason for error in refused} == {Reason.TENANT_ALREADY_EXISTS}


async def test_default_tenant_is_created_once_and_cannot_be_deleted(plane: ControlPlane) -> None:
    await asyncio.gather(*[plane.tenants.ensure_default() for _ in range(4)])
    first = await plane.tenants.get("default")
    await plane.tenants.ensure_default()
    assert await plane.tenants.get("default") == first
    await refused(plane, "default", Reason.TENANT_PROTECTED)


async def test_update_changes_only_the_given_fields(plane: ControlPlane) -> None:
    before = await plane.tenants.update("acme", display_name="Acme", labels={"a": "1"})
    assert (await plane.tenants.update("acme", labels={})).display_name == "Acme"
    after = await plane.tenants.update("acme", display_name="")
    assert (after.display_name, after.labels) == ("", {})
    assert (after.uid, after.create_time) == (before.uid, before.create_time)
    with pytest.raises(NotFoundError):
        await plane.tenants.update("unknown", display_name="x")


async def test_pages_are_newest_first_and_complete(plane: ControlPlane) -> None:
    for n in range(7):
        await plane.tenants.create(f"t{n}", "", {})
    await plane.tenants.delete("t3")
    found: list[Tenant] = []
    before = LAST_UUID
    while page := await plane.tenants.list_page(before=before, limit=3):
        found += page
        before = page[-1].uid
    assert [tenant.tenant_id for tenant in found] == ["t6", "t5", "t4", "t2", "t1", "t0", "acme"]


# ------------------------------------------------------------------------------------------- ending


async def refused(plane: ControlPlane, tenant_id: str, reason: Reason) -> None:
    with pytest.raises(HooklineError) as caught:
        await plane.tenants.delete(tenant_id)
    assert caught.value.reason == reason


async def test_tenant_with_subscriptions_or_pending_deliveries_cannot_be_deleted(
    plane: ControlPlane, database_url: str
) -> None:
    subscription = await plane.create()
    tenant = await plane.tenants.get("acme")
    async with rows_in(database_url) as rows:
        event_id = await rows.event(tenant.uid)
        await rows.pending(Place(tenant.uid, subscription.uid), event_id)
    await refused(plane, "acme", Reason.TENANT_NOT_EMPTY)
    await plane.subscriptions.delete("acme", "orders")
    await refused(plane, "acme", Reason.TENANT_NOT_EMPTY)
    await plane.rows("DELETE FROM pending_deliveries")
    epoch = await plane.epoch()
    await plane.tenants.delete("acme")
    statement = "SELECT epoch FROM tenants WHERE tenant_uid = $1 AND deleted_at IS NOT NULL"
    assert await plane.value(statement, tenant.uid) == epoch + 1
    await refused(plane, "acme", Reason.TENANT_NOT_FOUND)


async def test_recreated_tenant_has_a_new_uid_and_inherits_nothing(plane: ControlPlane) -> None:
    await plane.tenants.update("acme", display_name="Acme", labels={"a": "1"})
    before = await plane.tenants.get("acme")
    await plane.create()
    await plane.subscriptions.delete("acme", "orders")
    await plane.tenants.delete("acme")
    after = await plane.tenants.create("acme", "", {})
    assert after.uid != before.uid
    assert (after.display_name, after.labels) == ("", {})
    assert await plane.subscriptions.list_page("acme", limit=9) == []
    assert await plane.count() == 0
    new = await plane.create()
    load = await plane.index("acme", 3, before.uid)
    assert (load.tenant_uid, load.is_whole) == (after.uid, True)
    assert [row.subscription_uid for row in load.changed] == [new.uid]


async def test_deletion_that_waits_for_a_creation_detects_it(
    plane: ControlPlane, database_url: str
) -> None:
    tenant = await plane.tenants.get("acme")
    async with rival(database_url) as other:
        await other.execute(
            "UPDATE tenants SET subscription_count = 1 WHERE tenant_uid = $1", tenant.uid
        )
        end = asyncio.ensure_future(refused(plane, "acme", Reason.TENANT_NOT_EMPTY))
        await until_blocked(plane.database, "calls")
        await other.execute("COMMIT")
        await end


async def test_concurrent_creation_and_deletion_leave_no_orphan(plane: ControlPlane) -> None:
    for n in range(10):
        await plane.tenants.create(f"t{n}", "", {})
        create, delete = await asyncio.gather(
            plane.create("orders", f"t{n}"),
            plane.tenants.delete(f"t{n}"),
            return_exceptions=True,
        )
        assert isinstance(create, NotFoundError) != isinstance(delete, FailedPreconditionError)
    orphans = """SELECT count(*) FROM subscriptions s JOIN tenants t USING (tenant_uid)
                 WHERE t.deleted_at IS NOT NULL AND s.deleted_at IS NULL"""
    assert await plane.value(orphans) == 0
