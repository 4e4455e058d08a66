"""Audit entries of changes: one for each change, with the state before and after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from hookline_service.domain.delivery import DeliveryState
from hookline_service.domain.errors import AbortedError, ResourceExhaustedError
from hookline_service.domain.event import EventType
from hookline_service.domain.subscription import HttpTarget, Subscription
from hookline_service.store.database import Database, OutcomeUnknownError
from hookline_service.store.operations import OperationStore
from tests.pipeline.rival import rival, until_blocked
from tests.store.audit_log import entries_of, newest, shown, verified
from tests.store.control_plane import SECRET, ControlPlane, control_plane, draft, secret
from tests.store.rows import Place, Rows, rows_in

OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
ORDERS = "tenants/acme/subscriptions/orders"


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        yield plane


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with rows_in(database_url) as rows:
        yield rows


async def count(plane: ControlPlane) -> int:
    return len(await entries_of(plane.database))


# ---------------------------------------------------------------------------------------- tenants


async def test_changes_of_a_tenant_are_audited(plane: ControlPlane) -> None:
    await plane.tenants.update("acme", display_name="Acme", labels={"tier": "gold"})
    await plane.tenants.delete("acme")
    created, updated, deleted = await entries_of(plane.database)
    assert created.before_json == deleted.after_json == ""
    assert created.after_json == updated.before_json
    assert updated.after_json == deleted.before_json
    assert shown(created.after_json) | {"display_name": "Acme", "labels": {"tier": "gold"}} == (
        shown(updated.after_json)
    )
    assert len({entry.tenant_uid for entry in (created, updated, deleted)} - {None}) == 1


async def test_an_update_after_a_concurrent_one_audits_the_latest_state(
    plane: ControlPlane, database_url: str
) -> None:
    async with rival(database_url) as quicker:
        await quicker.execute("UPDATE tenants SET display_name = 'theirs'")
        updating = asyncio.create_task(plane.tenants.update("acme", labels={"tier": "gold"}))
        await until_blocked(plane.database, "calls")
        await quicker.execute("COMMIT")
        updated = await updating
    assert (updated.display_name, updated.labels) == ("theirs", {"tier": "gold"})
    entry = await newest(plane.database)
    for side in (entry.before_json, entry.after_json):
        assert shown(side)["display_name"] == "theirs"


async def test_default_tenant_is_created_once_by_the_service(
    plane: ControlPlane,
) -> None:
    await plane.tenants.ensure_default()
    await plane.tenants.ensure_default()
    entry = await newest(plane.database)
    assert (entry.principal, entry.method) == ("hookline", "EnsureDefaultTenant")
    assert entry.sequence == 2


async def test_change_without_effect_has_no_audit_entry(plane: ControlPlane) -> None:
    await plane.create()
    await plane.event_types.create(EventType(name="order.created"))
    await plane.subscriptions.pause("acme", "orders")
    before = await count(plane)
    await plane.tenants.update("acme", display_name="")
    await plane.subscriptions.pause("acme", "orders")
    await plane.event_types.change("order.created", lambda seen: seen)
    with pytest.raises(AbortedError):
        await plane.subscriptions.delete("acme", "orders", etag="0-0")
    with pytest.raises(ResourceExhaustedError):
        await plane.subscriptions.create(draft("more"), secret(), max_of_tenant=1)
    assert await count(plane) == before


# ------------------------------------------------------------------------------------ event types


async def test_changes_of_an_event_type_are_audited(plane: ControlPlane) -> None:
    await plane.event_types.create(EventType(name="order.created", description="first"))
    changed = await plane.event_types.change(
        "order.created", lambda seen: replace(seen, json_schema='{"type":"object"}')
    )
    await plane.event_types.archive("order.created")
    created, revised, archived = (await entries_of(plane.database))[1:]
    assert {entry.resource for entry in (created, revised, archived)} == {
        "eventTypes/order.created"
    }
    assert {(entry.tenant, entry.tenant_uid) for entry in (created, revised, archived)} == {
        ("", None)
    }
    assert created.after_json == revised.before_json
    assert revised.after_json == archived.before_json
    after = shown(revised.after_json)
    assert (after["etag"], after["revision"]) == (changed.etag, changed.revision) == ("2", 2)
    assert after["json_schema"] == '{"type":"object"}'
    assert shown(archived.after_json)["state"] == "ARCHIVED"


# ---------------------------------------------------------------------------------- subscriptions


async def test_changes_of_a_subscription_are_audited(plane: ControlPlane) -> None:
    def moved(seen: Subscription) -> Subscription:
        return replace(seen, target=HttpTarget(url="https://elsewhere.example.com/?key=geheim"))

    await plane.create()
    states = [await plane.subscriptions.get("acme", "orders")]
    states.append(await plane.subscriptions.change("acme", "orders", moved))
    states.append(await plane.subscriptions.pause("acme", "orders"))
    states.append(await plane.subscriptions.resume("acme", "orders"))
    await plane.subscriptions.delete("acme", "orders")
    entries = (await entries_of(plane.database))[1:]
    assert {entry.resource for entry in entries} == {ORDERS}
    befores = ["", *(entry.after_json for entry in entries[:-1])]
    assert [entry.before_json for entry in entries] == befores
    afters = [shown(entry.after_json) for entry in entries[:-1]]
    assert [after["etag"] for after in afters] == [state.etag for state in states]
    assert [after["state"] for after in afters] == [state.state for state in states]
    assert afters[1]["http"]["url"] == "https://elsewhere.example.com/?key=[redacted]"
    assert entries[-1].after_json == ""


async def test_the_audit_entry_of_a_rotation_contains_no_secret(plane: ControlPlane) -> None:
    await plane.create()
    await plane.subscriptions.rotate("acme", "orders", secret(OTHER), overlap_s=60)
    entry = await newest(plane.database)
    before, after = shown(entry.before_json), shown(entry.after_json)
    assert (len(before["signing_keys"]), len(after["signing_keys"])) == (1, 2)
    assert after["overlap_s"] == 60
    assert after["etag"] == (await plane.subscriptions.get("acme", "orders")).etag
    log = str(await entries_of(plane.database))
    for text in (SECRET, OTHER):
        assert text.removeprefix("whsec_") not in log


async def test_rotation_to_the_current_secret_has_no_audit_entry(plane: ControlPlane) -> None:
    await plane.create()
    before = await count(plane)
    await plane.subscriptions.rotate("acme", "orders", secret(SECRET), overlap_s=60)
    assert await count(plane) == before


async def test_creation_with_a_lost_answer_is_audited_once(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Database.fetch
    lost = iter([True])

    async def losing(database: Database, statement: str, *arguments: object) -> object:
        answer = await fetch(database, statement, *arguments)
        if "INTO signing_keys" in statement and next(lost, False):
            raise OutcomeUnknownError("lost")
        return answer

    monkeypatch.setattr(Database, "fetch", losing)
    await plane.create()
    assert [entry.resource for entry in await entries_of(plane.database)] == [
        "tenants/acme",
        ORDERS,
    ]


async def test_discarding_audits_the_count_of_each_batch_in_its_transaction(
    plane: ControlPlane, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hookline_service.store.subscriptions._DISCARD_BATCH", 2)
    await plane.create()
    await plane.create("bystander")
    place = await place_of(plane)
    for _ in range(3):
        await rows.pending(place, await rows.event(place.tenant_uid))
    before = await count(plane)
    now = await plane.subscriptions.now()
    await plane.subscriptions.resume("acme", "orders", discard_before=now + timedelta(days=1))
    added = (await entries_of(plane.database))[before:]
    assert [shown(entry.after_json).get("cancelled_count") for entry in added] == [2, 1, None]
    assert {(entry.resource, entry.tenant_uid) for entry in added} == {(ORDERS, place.tenant_uid)}


# ------------------------------------------------------------------------------------- deliveries


async def place_of(plane: ControlPlane) -> Place:
    tenant = await plane.tenants.get("acme")
    return Place(tenant.uid, (await plane.subscriptions.get("acme", "orders")).uid)


async def test_retry_and_cancel_of_a_delivery_are_audited(plane: ControlPlane, rows: Rows) -> None:
    await plane.create()
    place = await place_of(plane)
    delivery_id = await rows.pending(place, await rows.event(place.tenant_uid))
    await plane.rows("UPDATE pending_deliveries SET due_at = now() + interval '1 hour'")
    store = OperationStore(plane.database)
    before = await count(plane)

    async def found() -> DeliveryState:
        delivery = await store.find("acme", delivery_id)
        assert delivery is not None
        return delivery.state

    delivery = await store.find("acme", delivery_id)
    assert delivery is not None
    assert await store.retry_pending(delivery, DeliveryState.PENDING)
    assert not await store.retry_pending(delivery, DeliveryState.PENDING), "it is due already"
    assert await store.cancel(delivery, DeliveryState.CANCELLED)
    assert not await store.cancel(delivery, DeliveryState.CANCELLED), "it is cancelled already"
    cancelled = await store.find("acme", delivery_id)
    assert cancelled is not None
    assert await store.retry_finished(cancelled, DeliveryState.PENDING, 3)
    assert not await store.retry_finished(cancelled, DeliveryState.PENDING, 3), (
        "it is pending already"
    )

    added = (await entries_of(plane.database))[before:]
    states = [
        (shown(entry.before_json)["state"], shown(entry.after_json)["state"]) for entry in added
    ]
    assert states == [("PENDING", "PENDING"), ("PENDING", "CANCELLED"), ("CANCELLED", "PENDING")]
    assert await found() is DeliveryState.PENDING
    for entry in added:
        assert entry.resource.startswith("tenants/acme/deliveries/dlv_")
        assert shown(entry.after_json)["subscription"] == ORDERS
        assert entry.tenant_uid == place.tenant_uid
    await verified(plane.database)
