"""The audit log records each change and each privileged read, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest

from hookline.v1.access_service_pb2 import (
    CreateApiKeyRequest,
    ListAuditEntriesRequest,
    RevokeApiKeyRequest,
)
from hookline.v1.access_service_pb2_grpc import AccessServiceStub
from hookline.v1.api_key_pb2 import API_KEY_SCOPE_PUBLISH, ApiKey
from hookline.v1.delivery_service_pb2 import (
    CancelDeliveryRequest,
    GetDeliveryRequest,
    ListAttemptsRequest,
    ListDeliveriesRequest,
    RetryDeliveryRequest,
    WatchDeliveriesRequest,
    WatchDeliveriesResponse,
)
from hookline.v1.delivery_service_pb2_grpc import DeliveryServiceServicer, DeliveryServiceStub
from hookline.v1.event_pb2 import EVENT_VIEW_FULL, Event
from hookline.v1.event_service_pb2 import GetEventRequest, ListEventsRequest
from hookline.v1.event_service_pb2_grpc import EventServiceStub
from hookline.v1.event_type_pb2 import EventType
from hookline.v1.event_type_service_pb2 import (
    ArchiveEventTypeRequest,
    CreateEventTypeRequest,
    UpdateEventTypeRequest,
)
from hookline.v1.subscription_service_pb2 import GetSubscriptionRequest, SendTestEventRequest
from hookline.v1.tenant_pb2 import Tenant
from hookline.v1.tenant_service_pb2 import (
    CreateTenantRequest,
    DeleteTenantRequest,
    GetTenantRequest,
    ListTenantsRequest,
    UpdateTenantRequest,
)
from hookline_service.domain.audit import AuditEntry
from hookline_service.domain.errors import Reason, UnavailableError
from hookline_service.store.audit import AuditLog
from tests.api.conftest import Api, refusing, serving
from tests.api.control import ORDERS, Control, controlling, http, orders
from tests.api.refusals import refusal
from tests.api.rpcs import CHANGING, UNBUILT, rpc_of
from tests.pipeline.receiver import Receiver
from tests.store.audit_log import entries_of, shown, verified

METHOD = "/hookline.v1."


MADE = (
    *(f"TenantService/{verb}Tenant" for verb in ("Create", "Update", "Delete")),
    *(f"EventTypeService/{verb}EventType" for verb in ("Create", "Update", "Archive")),
    *(f"SubscriptionService/{verb}Subscription" for verb in ("Create", "Update", "Delete")),
    "SubscriptionService/PauseSubscription",
    "SubscriptionService/ResumeSubscription",
    "SubscriptionService/RotateSigningSecret",
    "SubscriptionService/SendTestEvent",
    "DeliveryService/RetryDelivery",
    "DeliveryService/CancelDelivery",
    "AccessService/CreateApiKey",
    "AccessService/RevokeApiKey",
)
"""The changes that `test_every_change_leaves_one_entry` makes."""


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url) as control:
        yield control


# ------------------------------------------------------------------------------------- changes


async def recorded(control: Control, since: int = 0) -> list[AuditEntry]:
    return (await entries_of(control.rig.database))[since:]


async def record_changes(
    control: Control, changes: Sequence[tuple[str, str, Callable[[], Awaitable[Any]]]]
) -> list[AuditEntry]:
    """Make the changes, each a method, a resource and a call; return the entries of them."""
    before = len(await recorded(control))
    for _, _, call in changes:
        await call()
    entries = await recorded(control, before)
    assert [(entry.method, entry.resource) for entry in entries] == [
        (f"{METHOD}{method}", resource) for method, resource, _ in changes
    ]
    assert {entry.principal for entry in entries} == {"anonymous"}
    assert {entry.remote_address.rpartition(":")[0] for entry in entries} == {"ipv4:127.0.0.1"}
    await verified(control.rig.database)
    return entries


async def change_tenants_and_event_types(control: Control) -> None:
    tenants, types = control.tenants, control.event_types
    tenant, name, event_type = "tenants/other", "order.created", "eventTypes/order.created"
    renamed = UpdateTenantRequest(tenant=Tenant(name=tenant, display_name="Other"))
    described = UpdateEventTypeRequest(event_type=EventType(name=event_type, description="new"))
    created = CreateEventTypeRequest(event_type_id=name)
    archived = ArchiveEventTypeRequest(name=event_type)
    create = CreateTenantRequest(tenant_id="other")
    await record_changes(
        control,
        [
            ("TenantService/CreateTenant", tenant, lambda: tenants.CreateTenant(create)),
            ("TenantService/UpdateTenant", tenant, lambda: tenants.UpdateTenant(renamed)),
            (
                "TenantService/DeleteTenant",
                tenant,
                lambda: tenants.DeleteTenant(DeleteTenantRequest(name=tenant)),
            ),
            (
                "EventTypeService/CreateEventType",
                event_type,
                lambda: types.CreateEventType(created),
            ),
            (
                "EventTypeService/UpdateEventType",
                event_type,
                lambda: types.UpdateEventType(described),
            ),
            (
                "EventTypeService/ArchiveEventType",
                event_type,
                lambda: types.ArchiveEventType(archived),
            ),
        ],
    )


async def change_a_subscription(control: Control, receiver: Receiver) -> None:
    event = Event(type="order.paid", json_data="{}")

    async def send(*, validate_only: bool = False) -> None:
        request = SendTestEventRequest(name=ORDERS, event=event, validate_only=validate_only)
        await control.subscriptions.SendTestEvent(request)

    async def change_and_change_nothing() -> None:
        await control.update(orders(display_name="Orders"), ["display_name"])
        await control.update(orders(display_name="Orders"), ["display_name"])
        await send(validate_only=True)

    target = orders(http=http(url=receiver.url))
    calls: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
        ("CreateSubscription", lambda: control.create(target)),
        ("UpdateSubscription", change_and_change_nothing),
        ("PauseSubscription", control.pause),
        ("ResumeSubscription", control.resume),
        ("RotateSigningSecret", control.rotate),
        ("SendTestEvent", send),
        ("DeleteSubscription", control.delete),
    ]
    entries = await record_changes(
        control, [(f"SubscriptionService/{name}", ORDERS, call) for name, call in calls]
    )
    (tested,) = [entry for entry in entries if entry.method.endswith("SendTestEvent")]
    assert shown(tested.after_json)["state"] == "SUCCEEDED"


async def change_an_api_key(control: Control) -> None:
    access = AccessServiceStub(control.channel)
    wanted = ApiKey(tenant="tenants/acme", scopes=[API_KEY_SCOPE_PUBLISH])
    before = len(await recorded(control))
    made = await access.CreateApiKey(CreateApiKeyRequest(api_key=wanted))
    for _ in range(2):  # the second time it changes nothing
        await access.RevokeApiKey(RevokeApiKeyRequest(name=made.api_key.name))
    created, revoked = await recorded(control, before)
    assert (created.method, revoked.method) == (
        f"{METHOD}AccessService/CreateApiKey",
        f"{METHOD}AccessService/RevokeApiKey",
    )
    assert created.resource == revoked.resource == made.api_key.name
    assert created.tenant == revoked.tenant == "tenants/acme"
    assert shown(revoked.after_json)["is_revoked"]
    assert made.token not in f"{created}{revoked}"


async def change_a_delivery(control: Control) -> None:
    await control.create()
    await control.pause()
    await control.publish()
    deliveries = DeliveryServiceStub(control.channel)
    listed = await deliveries.ListDeliveries(ListDeliveriesRequest(tenant="tenants/acme"))
    name = listed.deliveries[0].name
    before = len(await recorded(control))
    await deliveries.CancelDelivery(CancelDeliveryRequest(name=name))
    await deliveries.CancelDelivery(CancelDeliveryRequest(name=name))  # changes nothing
    await deliveries.RetryDelivery(RetryDeliveryRequest(name=name))
    assert [(entry.method, entry.resource) for entry in await recorded(control, before)] == [
        (f"{METHOD}DeliveryService/CancelDelivery", name),
        (f"{METHOD}DeliveryService/RetryDelivery", name),
    ]


async def test_every_change_leaves_one_entry(control: Control, receiver: Receiver) -> None:
    await change_tenants_and_event_types(control)
    await change_a_subscription(control, receiver)
    await change_an_api_key(control)
    await change_a_delivery(control)
    entries = [entry for entry in await recorded(control) if entry.method]  # others: the set-up
    assert {entry.method.removeprefix("/") for entry in entries} == {
        f"hookline.v1.{name}" for name in MADE
    }


def test_each_implemented_change_is_made_above() -> None:
    implemented = {name for name in CHANGING if rpc_of(name) not in UNBUILT}
    assert implemented == {f"hookline.v1.{name}" for name in MADE}


async def test_a_refused_call_leaves_no_entry(control: Control) -> None:
    before = len(await recorded(control))
    tenants = control.tenants
    await refusal(tenants.CreateTenant(CreateTenantRequest(tenant_id="acme")))
    await refusal(tenants.CreateTenant(CreateTenantRequest(tenant_id="Not An Id")))
    await refusal(tenants.DeleteTenant(DeleteTenantRequest(name="tenants/default")))
    await refusal(control.get("tenants/-/subscriptions/nothing"))
    assert await recorded(control, before) == []


# --------------------------------------------------------------------------------------- reads


def _reads(control: Control, event: str, delivery: str) -> dict[str, Callable[[str], Any]]:
    """Each read by its method, as it asks for a tenant or, with `-`, across all of them."""
    events, deliveries = EventServiceStub(control.channel), DeliveryServiceStub(control.channel)
    return {
        "TenantService/ListTenants": lambda _: control.tenants.ListTenants(ListTenantsRequest()),
        "EventService/GetEvent": lambda tenant: events.GetEvent(
            GetEventRequest(name=f"tenants/{tenant}/events/{event}")
        ),
        "EventService/ListEvents": lambda tenant: events.ListEvents(
            ListEventsRequest(tenant=f"tenants/{tenant}")
        ),
        "SubscriptionService/GetSubscription": lambda tenant: control.subscriptions.GetSubscription(
            GetSubscriptionRequest(name=f"tenants/{tenant}/subscriptions/orders")
        ),
        "SubscriptionService/ListSubscriptions": lambda tenant: control.page(
            tenant=f"tenants/{tenant}"
        ),
        "DeliveryService/GetDelivery": lambda tenant: deliveries.GetDelivery(
            GetDeliveryRequest(name=f"tenants/{tenant}/deliveries/{delivery}")
        ),
        "DeliveryService/ListDeliveries": lambda tenant: deliveries.ListDeliveries(
            ListDeliveriesRequest(tenant=f"tenants/{tenant}")
        ),
        "DeliveryService/ListAttempts": lambda tenant: deliveries.ListAttempts(
            ListAttemptsRequest(delivery=f"tenants/{tenant}/deliveries/{delivery}")
        ),
        "AccessService/ListAuditEntries": lambda tenant: AccessServiceStub(
            control.channel
        ).ListAuditEntries(ListAuditEntriesRequest(tenant=f"tenants/{tenant}")),
    }


async def test_privileged_reads_are_recorded(control: Control) -> None:
    await control.create()
    await control.pause()
    event = (await control.publish()).name
    listed = await DeliveryServiceStub(control.channel).ListDeliveries(
        ListDeliveriesRequest(tenant="tenants/acme")
    )
    delivery = listed.deliveries[0].name
    always = {
        "TenantService/ListTenants": ("", ""),
        "EventService/GetEvent": (event, event),
        "AccessService/ListAuditEntries": ("tenants/acme", "tenants/-"),
    }
    across = {
        "EventService/ListEvents": "tenants/-",
        "SubscriptionService/GetSubscription": ORDERS,
        "SubscriptionService/ListSubscriptions": "tenants/-",
        "DeliveryService/GetDelivery": delivery,
        "DeliveryService/ListDeliveries": "tenants/-",
        "DeliveryService/ListAttempts": f"tenants/-/deliveries/{delivery.rpartition('/')[2]}",
    }
    expected = [(method, names[0]) for method, names in always.items()]
    expected += [(method, names[1]) for method, names in always.items()]
    expected += list(across.items())
    before = len(await recorded(control))
    reads = _reads(control, event.rpartition("/")[2], delivery.rpartition("/")[2])
    for tenant in ("acme", "-"):
        for read in reads.values():
            await read(tenant)
    entries = await recorded(control, before)
    assert sorted((entry.method.removeprefix(METHOD), entry.resource) for entry in entries) == (
        sorted(expected)
    )
    for entry in entries:
        assert (entry.before_json, entry.after_json) == ("", "")
        of_acme = entry.resource.startswith("tenants/acme")
        assert entry.tenant == ("tenants/acme" if of_acme else "")
        assert (entry.tenant_uid is not None) is of_acme


async def test_ordinary_reads_are_not_recorded(control: Control) -> None:
    before = len(await recorded(control))
    await control.tenants.GetTenant(GetTenantRequest(name="tenants/acme"))
    await control.page()
    events = EventServiceStub(control.channel)
    await events.ListEvents(ListEventsRequest(tenant="tenants/acme"))
    assert await recorded(control, before) == []
    await events.ListEvents(ListEventsRequest(tenant="tenants/acme", view=EVENT_VIEW_FULL))
    assert len(await recorded(control, before)) == 1


async def test_a_read_that_cannot_be_recorded_is_not_answered(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise UnavailableError("not now", Reason.DATABASE_UNAVAILABLE)

    name = (await control.publish()).name
    monkeypatch.setattr(AuditLog, "add_read", fail)
    events = EventServiceStub(control.channel)
    answer = await refusal(events.GetEvent(GetEventRequest(name=name)))
    assert (answer.code, answer.message) == (grpc.StatusCode.UNAVAILABLE, "not now")


class Watching(refusing(DeliveryServiceServicer).__class__):  # type: ignore[misc]
    """WatchDeliveries answers once."""

    async def WatchDeliveries(
        self, request: WatchDeliveriesRequest, context: object
    ) -> AsyncIterator[WatchDeliveriesResponse]:
        del request, context
        yield WatchDeliveriesResponse()


async def test_a_stream_is_recorded_when_it_begins(database_url: str) -> None:
    async with serving(database_url, deliveries=Watching()) as api:
        for tenant in ("tenants/acme", "tenants/-"):
            request = WatchDeliveriesRequest(tenant=tenant)
            async for _ in api.deliveries.WatchDeliveries(request):
                entries = await watched(api)
            assert entries == (["tenants/-"] if tenant == "tenants/-" else [])


async def watched(api: Api) -> list[str]:
    return [
        entry.resource
        for entry in await entries_of(api.rig.database)
        if entry.method.endswith("/WatchDeliveries")
    ]
