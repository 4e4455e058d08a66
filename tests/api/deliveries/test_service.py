"""DeliveryService over a real channel: how deliveries are shown, listed, retried and cancelled."""

from __future__ import annotations

from uuid import UUID

import grpc

from hookline.v1.attempt_pb2 import ATTEMPT_OUTCOME_ACCEPTED, ATTEMPT_OUTCOME_HTTP_ERROR
from hookline.v1.delivery_pb2 import (
    DELIVERY_STATE_CANCELLED,
    DELIVERY_STATE_EXHAUSTED,
    DELIVERY_STATE_PENDING,
    DELIVERY_STATE_REASON_OPERATOR,
    DELIVERY_STATE_REASON_SUBSCRIPTION_PAUSED,
    DELIVERY_STATE_SUCCEEDED,
    DELIVERY_STATE_UNSPECIFIED,
    Delivery,
)
from hookline.v1.delivery_service_pb2 import (
    CancelDeliveryRequest,
    GetDeliveryRequest,
    ListAttemptsRequest,
    ListDeliveriesRequest,
    RetryDeliveryRequest,
)
from hookline_service.domain.ids import format_type_id
from tests.api.conftest import Api
from tests.api.publishing import order, publish
from tests.api.refusals import refusal
from tests.store.rows import Place

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
SOME_ID = "01jdc6cqsyfz8snxvzxvqf9h5b"


async def place(api: Api, subscription_id: str = "orders") -> Place:
    """Create a paused subscription of acme: no node sends its deliveries."""
    tenant_uid: UUID = await api.rows.connection.fetchval(
        "SELECT tenant_uid FROM tenants WHERE tenant_id = 'acme'"
    )
    uid = await api.rig.subscription(
        tenant_uid,
        "http://127.0.0.1:1024/",
        subscription_id=subscription_id,
        state="PAUSED",
        state_reason="OPERATOR",
    )
    return Place(tenant_uid, uid)


def name_of(delivery_id: UUID, tenant_id: str = "acme") -> str:
    return f"tenants/{tenant_id}/deliveries/{format_type_id('dlv', delivery_id)}"


async def get(api: Api, name: str) -> Delivery:
    return (await api.deliveries.GetDelivery(GetDeliveryRequest(name=name))).delivery


async def test_new_delivery_has_every_field(api: Api) -> None:
    await place(api)
    result = (await publish(api, order(type="order.paid"))).results[0]
    assert result.delivery_count == 1
    listed = await api.deliveries.ListDeliveries(
        ListDeliveriesRequest(tenant="tenants/acme", event=result.name)
    )
    [delivery] = listed.deliveries
    assert delivery == await get(api, delivery.name)
    assert delivery.event == result.name
    assert delivery.event_type == "order.paid"
    assert delivery.subscription == "tenants/acme/subscriptions/orders"
    assert delivery.state == DELIVERY_STATE_PENDING
    assert delivery.state_reason == DELIVERY_STATE_REASON_SUBSCRIPTION_PAUSED
    assert delivery.HasField("attempt_count")
    assert delivery.attempt_count == 0
    for field in ("next_attempt_time", "last_attempt", "finish_time"):
        assert not delivery.HasField(field)
    assert delivery.create_time.ToMilliseconds() > 0


async def test_a_finished_delivery_shows_its_last_attempt(api: Api) -> None:
    orders = await place(api)
    at_once = await api.rows.finished(orders, await api.rows.event(orders.tenant_uid))
    delivery = await get(api, name_of(at_once))
    assert delivery.state == DELIVERY_STATE_SUCCEEDED
    assert delivery.finish_time.ToDatetime() == api.rows.now.replace(tzinfo=None)
    attempt = delivery.last_attempt
    assert (attempt.number, attempt.outcome) == (1, ATTEMPT_OUTCOME_ACCEPTED)
    assert (attempt.http_status, attempt.latency.ToMicroseconds()) == (204, 1_500)
    assert attempt.remote_address == "192.0.2.1:443"
    listed = await api.deliveries.ListAttempts(ListAttemptsRequest(delivery=name_of(at_once)))
    assert list(listed.attempts) == [attempt]


async def test_attempts_are_listed_oldest_first_in_pages(api: Api) -> None:
    orders = await place(api)
    dead = await api.rows.finished(
        orders, await api.rows.event(orders.tenant_uid), state="EXHAUSTED", attempt_count=3
    )
    for number in (2, 3, 1):
        await api.rows.attempt(dead, number, excerpt=b"no \xff\x00", error=b"HTTP 500")
    request = ListAttemptsRequest(delivery=name_of(dead), page_size=2)
    first = await api.deliveries.ListAttempts(request)
    request.page_token = first.next_page_token
    second = await api.deliveries.ListAttempts(request)
    attempts = [*first.attempts, *second.attempts]
    assert [attempt.number for attempt in attempts] == [1, 2, 3]
    assert second.next_page_token == ""
    attempt = attempts[0]
    assert (attempt.outcome, attempt.http_status) == (ATTEMPT_OUTCOME_HTTP_ERROR, 500)
    assert attempt.response_excerpt == "no \ufffd\x00"
    assert attempt.error == "HTTP 500"
    assert attempt.trace_id == bytes(range(16)).hex()
    assert attempt.latency.ToMicroseconds() == 2_000
    assert attempt.start_time.ToDatetime() == api.rows.now.replace(tzinfo=None)
    assert (await get(api, name_of(dead))).last_attempt == attempts[-1]


async def test_lists_filter_by_subscription_event_and_state(api: Api) -> None:
    orders, audit = await place(api), await place(api, "audit")
    names: dict[str, str] = {}
    for state in ("SUCCEEDED", "EXHAUSTED"):
        for subscription, where in (("orders", orders), ("audit", audit)):
            event_id = await api.rows.event(where.tenant_uid)
            delivery_id = await api.rows.finished(where, event_id, state=state, attempt_count=2)
            names[f"{subscription} {state}"] = name_of(delivery_id)
    event_id = await api.rows.event(orders.tenant_uid)
    for index, (subscription, where) in enumerate((("orders", orders), ("audit", audit))):
        delivery_id = await api.rows.pending(where, event_id, index=index)
        names[f"{subscription} PENDING"] = name_of(delivery_id)
    of_orders = "tenants/acme/subscriptions/orders"
    event = f"tenants/acme/events/{format_type_id('evt', event_id)}"
    dead, pending = DELIVERY_STATE_EXHAUSTED, DELIVERY_STATE_PENDING
    cases: list[tuple[ListDeliveriesRequest, set[str]]] = [
        (ListDeliveriesRequest(), set(names)),
        (
            ListDeliveriesRequest(subscription=of_orders),
            {"orders SUCCEEDED", "orders EXHAUSTED", "orders PENDING"},
        ),
        (ListDeliveriesRequest(event=event), {"orders PENDING", "audit PENDING"}),
        (ListDeliveriesRequest(event=event, subscription=of_orders), {"orders PENDING"}),
        (ListDeliveriesRequest(states=[dead]), {"orders EXHAUSTED", "audit EXHAUSTED"}),
        (
            ListDeliveriesRequest(states=[dead, pending], subscription=of_orders),
            {"orders EXHAUSTED", "orders PENDING"},
        ),
        (ListDeliveriesRequest(states=[dead], event=event), set()),
    ]
    for request, expected in cases:
        for tenant in ("tenants/acme", "tenants/-"):
            request.tenant = tenant
            page = await api.deliveries.ListDeliveries(request)
            assert {d.name for d in page.deliveries} == {names[key] for key in expected}


async def test_pages_of_deliveries_miss_none(api: Api) -> None:
    await place(api)
    await publish(api, *[order()] * 7)
    request = ListDeliveriesRequest(tenant="tenants/acme", page_size=3)
    listed: list[str] = []
    while True:
        page = await api.deliveries.ListDeliveries(request)
        listed += [delivery.name for delivery in page.deliveries]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert len(set(listed)) == 7
    assert listed == sorted(listed, reverse=True)


async def test_a_page_token_belongs_to_its_list(api: Api) -> None:
    orders = await place(api)
    await publish(api, *[order()] * 2)
    event_id = await api.rows.event(orders.tenant_uid)
    event = f"tenants/acme/events/{format_type_id('evt', event_id)}"
    page = await api.deliveries.ListDeliveries(
        ListDeliveriesRequest(tenant="tenants/acme", page_size=1)
    )
    token = page.next_page_token
    for changed in (
        ListDeliveriesRequest(tenant="tenants/-"),
        ListDeliveriesRequest(tenant="tenants/acme", event=event),
        ListDeliveriesRequest(tenant="tenants/acme", states=[DELIVERY_STATE_PENDING]),
        ListDeliveriesRequest(
            tenant="tenants/acme", subscription="tenants/acme/subscriptions/orders"
        ),
    ):
        changed.page_token = token
        answer = await refusal(api.deliveries.ListDeliveries(changed))
        assert answer.violations == {"page_token": "PAGE_TOKEN_INVALID"}
    attempts = ListAttemptsRequest(delivery=page.deliveries[0].name, page_token=token)
    answer = await refusal(api.deliveries.ListAttempts(attempts))
    assert answer.violations == {"page_token": "PAGE_TOKEN_INVALID"}


async def test_invalid_lists_are_refused(api: Api) -> None:
    event = f"events/evt_{SOME_ID}"
    cases: list[tuple[ListDeliveriesRequest, set[str]]] = [
        (ListDeliveriesRequest(), {"tenant"}),
        (ListDeliveriesRequest(tenant="acme", page_size=-1), {"tenant", "page_size"}),
        (ListDeliveriesRequest(tenant="tenants/acme", subscription="orders"), {"subscription"}),
        (
            ListDeliveriesRequest(tenant="tenants/acme", subscription="tenants/b/subscriptions/x"),
            {"subscription"},
        ),
        (
            ListDeliveriesRequest(tenant="tenants/-", subscription="tenants/-/subscriptions/x"),
            {"subscription"},
        ),
        (ListDeliveriesRequest(tenant="tenants/acme", event="evt_1"), {"event"}),
        (ListDeliveriesRequest(tenant="tenants/acme", event=f"tenants/b/{event}"), {"event"}),
        (ListDeliveriesRequest(tenant="tenants/acme", event=f"tenants/-/{event}"), {"event"}),
        (
            ListDeliveriesRequest(
                tenant="tenants/acme",
                states=[DELIVERY_STATE_PENDING, DELIVERY_STATE_UNSPECIFIED, 99],  # type: ignore[list-item]
            ),
            {"states[1]", "states[2]"},
        ),
    ]
    for request, fields in cases:
        answer = await refusal(api.deliveries.ListDeliveries(request))
        assert (answer.code, set(answer.violations)) == (INVALID, fields)


async def test_missing_tenant_subscription_and_event_have_their_own_errors(api: Api) -> None:
    cases = [
        (ListDeliveriesRequest(tenant="tenants/unknown"), "TENANT_NOT_FOUND"),
        (
            ListDeliveriesRequest(
                tenant="tenants/acme", subscription="tenants/acme/subscriptions/x"
            ),
            "SUBSCRIPTION_NOT_FOUND",
        ),
        (
            ListDeliveriesRequest(
                tenant="tenants/acme", event=f"tenants/acme/events/evt_{SOME_ID}"
            ),
            "EVENT_NOT_FOUND",
        ),
    ]
    for request, reason in cases:
        answer = await refusal(api.deliveries.ListDeliveries(request))
        assert (answer.code, answer.reason) == (NOT_FOUND, reason)


async def test_filters_are_refused_not_ignored(api: Api) -> None:
    orders = await place(api)
    pending = await api.rows.pending(orders, await api.rows.event(orders.tenant_uid))
    for call in (
        api.deliveries.ListDeliveries(
            ListDeliveriesRequest(tenant="tenants/acme", filter="attempt_count > 3")
        ),
        api.deliveries.ListAttempts(
            ListAttemptsRequest(delivery=name_of(pending), filter="number > 3")
        ),
    ):
        answer = await refusal(call)
        assert answer.code is grpc.StatusCode.UNIMPLEMENTED
        assert (answer.reason, answer.metadata) == ("NOT_IMPLEMENTED", {"field": "filter"})


async def test_invalid_and_unknown_names_are_refused(api: Api) -> None:
    wrong = ("", "tenants/acme", f"tenants/acme/deliveries/evt_{SOME_ID}", "tenants/A/deliveries/x")
    unknown = (f"tenants/acme/deliveries/dlv_{SOME_ID}", f"tenants/no/deliveries/dlv_{SOME_ID}")
    api_ = api.deliveries
    for name in (*wrong, *unknown):
        for call, field in (
            (api_.GetDelivery(GetDeliveryRequest(name=name)), "name"),
            (api_.ListAttempts(ListAttemptsRequest(delivery=name)), "delivery"),
            (api_.RetryDelivery(RetryDeliveryRequest(name=name)), "name"),
            (api_.CancelDelivery(CancelDeliveryRequest(name=name)), "name"),
        ):
            answer = await refusal(call)
            if name in unknown:
                assert (answer.code, answer.reason) == (NOT_FOUND, "DELIVERY_NOT_FOUND")
            else:
                assert answer.code is INVALID
                assert set(answer.violations) == {field}


async def test_only_reads_accept_the_tenant_wildcard(api: Api) -> None:
    orders = await place(api)
    pending = await api.rows.pending(orders, await api.rows.event(orders.tenant_uid))
    across = name_of(pending, "-")
    assert (await get(api, across)).name == name_of(pending)
    listed = await api.deliveries.ListAttempts(ListAttemptsRequest(delivery=across))
    assert list(listed.attempts) == []
    for call in (
        api.deliveries.RetryDelivery(RetryDeliveryRequest(name=across)),
        api.deliveries.CancelDelivery(CancelDeliveryRequest(name=across)),
    ):
        assert (await refusal(call)).code is INVALID


async def test_a_dead_letter_is_retried_and_cancelled(api: Api) -> None:
    orders = await place(api)
    name = name_of(
        await api.rows.finished(
            orders, await api.rows.event(orders.tenant_uid), state="EXHAUSTED", attempt_count=3
        )
    )
    retried = (await api.deliveries.RetryDelivery(RetryDeliveryRequest(name=name))).delivery
    assert (retried.name, retried.state) == (name, DELIVERY_STATE_PENDING)
    assert retried.attempt_count == 3
    assert not retried.HasField("finish_time")
    cancelled = (await api.deliveries.CancelDelivery(CancelDeliveryRequest(name=name))).delivery
    assert cancelled.state == DELIVERY_STATE_CANCELLED
    assert cancelled.state_reason == DELIVERY_STATE_REASON_OPERATOR
    assert cancelled.HasField("finish_time")
    again = (await api.deliveries.CancelDelivery(CancelDeliveryRequest(name=name))).delivery
    assert again == cancelled


async def test_succeeded_delivery_cannot_be_retried_or_cancelled(api: Api) -> None:
    orders = await place(api)
    name = name_of(await api.rows.finished(orders, await api.rows.event(orders.tenant_uid)))
    for call, reason in (
        (
            api.deliveries.RetryDelivery(RetryDeliveryRequest(name=name)),
            "DELIVERY_ALREADY_SUCCEEDED",
        ),
        (
            api.deliveries.CancelDelivery(CancelDeliveryRequest(name=name)),
            "DELIVERY_ALREADY_FINISHED",
        ),
    ):
        answer = await refusal(call)
        assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
