"""Names, masks and etags in requests for subscriptions: invalid and unknown ones are rejected."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable

import grpc
import pytest

from hookline.v1.event_pb2 import Event
from hookline.v1.subscription_pb2 import Subscription
from hookline.v1.subscription_service_pb2 import (
    DeleteSubscriptionRequest,
    GetSubscriptionRequest,
    ListSubscriptionsRequest,
    PauseSubscriptionRequest,
    ResumeSubscriptionRequest,
    RotateSigningSecretRequest,
    SendTestEventRequest,
)
from hookline.v1.target_pb2 import PullTarget
from tests.api.control import INVALID, ORDERS, Control, controlling, orders
from tests.api.refusals import refusal


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url) as control:
        yield control


BAD_IDS = [
    "Orders", "1orders", "-orders", "orders.eu", "or/ders", "or ders", "or_ders", "ördérs",
    "a" * 64, "orders\n", "orders\x00", "*", "orders%00", "-",
]  # fmt: skip


def named_calls(control: Control, name: str) -> dict[str, Awaitable[object]]:
    stub = control.subscriptions
    return {
        "get": stub.GetSubscription(GetSubscriptionRequest(name=name)),
        "delete": stub.DeleteSubscription(DeleteSubscriptionRequest(name=name)),
        "pause": stub.PauseSubscription(PauseSubscriptionRequest(name=name)),
        "resume": stub.ResumeSubscription(ResumeSubscriptionRequest(name=name)),
        "rotate": stub.RotateSigningSecret(RotateSigningSecretRequest(name=name)),
        "test": stub.SendTestEvent(
            SendTestEventRequest(name=name, event=Event(type="a", json_data="{}"))
        ),
        "update": control.update(Subscription(display_name="x"), name=name),
    }


async def test_id_outside_the_grammar_is_refused(control: Control) -> None:
    for subscription_id in BAD_IDS:
        await check_id_is_refused(control, subscription_id)


async def check_id_is_refused(control: Control, subscription_id: str) -> None:
    found = await refusal(control.create(subscription_id=subscription_id))
    assert (found.code, found.violations) == (INVALID, {"subscription_id": "FIELD_INVALID"})
    names = [
        f"tenants/acme/subscriptions/{subscription_id}",
        f"tenants/{subscription_id}/subscriptions/orders",
    ]
    for name in names[: 1 if subscription_id == "-" else 2]:
        for kind, call in named_calls(control, name).items():
            found = await refusal(call)
            field = "subscription.name" if kind == "update" else "name"
            assert (found.code, found.violations) == (INVALID, {field: "FIELD_INVALID"})


BAD_NAMES = [
    "orders",
    "tenants/acme",
    "tenants/acme/events/orders",
    f"{ORDERS}/",
    f"{ORDERS}/x",
    "a" * 9_000,
]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_malformed_name_is_refused(control: Control, name: str) -> None:
    for kind, call in named_calls(control, name).items():
        found = await refusal(call)
        field = "subscription.name" if kind == "update" else "name"
        assert (found.code, found.violations) == (INVALID, {field: "FIELD_INVALID"})


async def test_only_reads_accept_the_tenant_wildcard(control: Control) -> None:
    made = (await control.create()).subscription
    name = "tenants/-/subscriptions/orders"
    assert await control.get(name) == made
    for kind, call in named_calls(control, name).items():
        if kind != "get":
            assert (await refusal(call)).code == INVALID
        else:
            await call
    found = await refusal(control.create(tenant="tenants/-"))
    assert found.violations == {"tenant": "FIELD_INVALID"}


async def test_foreign_and_unknown_subscriptions_get_the_same_error(control: Control) -> None:
    await control.rig.tenant("other")
    await control.create(tenant="tenants/other")
    answers = set()
    for name in [
        ORDERS,
        "tenants/acme/subscriptions/nothing",
        "tenants/unknown/subscriptions/orders",
    ]:
        for call in named_calls(control, name).values():
            found = await refusal(call)
            assert found.code == grpc.StatusCode.NOT_FOUND
            answers.add((found.reason, found.message.replace(name, "NAME"), str(found.metadata)))
    assert len(answers) == 1
    assert answers.pop()[0] == "SUBSCRIPTION_NOT_FOUND"


async def test_an_unknown_tenant_is_not_found(control: Control) -> None:
    listing = control.subscriptions.ListSubscriptions(
        ListSubscriptionsRequest(tenant="tenants/unknown")
    )
    for call in (control.create(tenant="tenants/unknown"), listing):
        found = await refusal(call)
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND")


# -------------------------------------------------------------------------------------------- masks


BAD_PATHS = [
    "http.ulr", "state", "uid", "name", "etag", "create_time", "http.signing_keys", "labels.a",
    "http.headers.x-a", "", ".", "http.", "http..url", "HTTP", "http_url", "retry_policy.x",
    "event_types[0]", "event_types.0", "\x00", "http.secret_header_names",
]  # fmt: skip


async def test_invalid_update_mask_is_refused(control: Control) -> None:
    before = (await control.create()).subscription
    for path in BAD_PATHS:
        found = await refusal(control.update(orders(display_name="x"), ["display_name", path]))
        assert (found.code, found.reason) == (INVALID, "UPDATE_MASK_INVALID"), path
        assert found.violations == {"update_mask": "UPDATE_MASK_INVALID"}, path
    assert await control.get() == before


async def test_update_mask_star_must_stand_alone(control: Control) -> None:
    await control.create()
    found = await refusal(control.update(orders(), ["*", "labels"]))
    assert found.violations == {"update_mask": "UPDATE_MASK_INVALID"}


@pytest.mark.parametrize("paths", [[], ["pull"], ["*"]])
async def test_target_kind_is_immutable(control: Control, paths: list[str]) -> None:
    await control.create()
    new = Subscription(event_types=["a"], pull=PullTarget())
    found = await refusal(control.update(new, paths))
    assert found.code == INVALID
    assert found.violations["subscription.pull"] == "FIELD_IMMUTABLE"


async def test_target_cannot_be_removed(control: Control) -> None:
    await control.create()
    for paths in (["http"], ["http.url"], ["*"]):
        found = await refusal(control.update(Subscription(event_types=["a"]), paths))
        assert found.violations == {"subscription.http.url": "FIELD_REQUIRED"}
