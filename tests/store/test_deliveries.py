"""Reads of deliveries, pending and finished, also while they move between the tables."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import pytest

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.delivery import DeliveryState, DeliveryStateReason
from hookline_service.domain.errors import NotFoundError, Reason
from hookline_service.domain.ids import LAST_UUID
from hookline_service.store.database import Database
from hookline_service.store.deliveries import DeliveryStore, Selection
from tests.store.rows import Place, Rows, rows_in


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with rows_in(database_url) as rows:
        yield rows


@pytest.fixture
async def deliveries(database_url: str) -> AsyncIterator[DeliveryStore]:
    database = Database(database_url, pool_size=2)
    await database.open()
    yield DeliveryStore(database)
    await database.close()


async def ids_of(
    deliveries: DeliveryStore, selection: Selection, *, limit: int = 100
) -> list[UUID]:
    """Return the ids of a whole list, read page by page."""
    seen: list[UUID] = []
    before, has_more = LAST_UUID, True
    while has_more:
        page = await deliveries.page(selection, before=before, limit=limit)
        seen += [delivery.delivery_id for delivery in page.deliveries]
        before, has_more = seen[-1] if seen else before, page.has_more
    return seen


async def test_pending_delivery_shows_its_due_time(rows: Rows, deliveries: DeliveryStore) -> None:
    acme = await rows.tenant("acme")
    orders = await rows.subscription(acme, "orders")
    event_id = await rows.event(acme, event_type="order.paid")
    delivery_id = await rows.pending(orders, event_id, attempt_count=1)
    await rows.attempt(delivery_id, 1, excerpt=b"no\xff", error=b"HTTP 500")
    found = await deliveries.get("acme", delivery_id)
    assert (found.state, found.state_reason) == (DeliveryState.PENDING, None)
    assert (found.tenant_id, found.subscription_id) == ("acme", "orders")
    assert (found.event_id, found.event_type) == (event_id, "order.paid")
    assert (found.next_attempt_time, found.finish_time) == (rows.now, None)
    attempt = found.last_attempt
    assert attempt is not None
    assert (attempt.number, found.attempt_count) == (1, 1)
    assert attempt.start_time_us == int(rows.now.timestamp()) * 1_000_000
    assert attempt.record.kind is AttemptOutcome.HTTP_ERROR
    assert (attempt.record.http_status, attempt.record.excerpt) == (500, b"no\xff")
    assert (attempt.record.error, attempt.trace_id) == ("HTTP 500", bytes(range(16)))


@pytest.mark.parametrize(
    "state,reason",
    [
        ("PAUSED", DeliveryStateReason.SUBSCRIPTION_PAUSED),
        ("DISABLED", DeliveryStateReason.SUBSCRIPTION_DISABLED),
    ],
)
async def test_held_delivery_shows_the_reason_and_no_time(
    rows: Rows, deliveries: DeliveryStore, state: str, reason: DeliveryStateReason
) -> None:
    acme = await rows.tenant("acme")
    held = await rows.subscription(acme, "held", state=state)
    delivery_id = await rows.pending(held, await rows.event(acme))
    found = await deliveries.get("acme", delivery_id)
    assert (found.state_reason, found.next_attempt_time) == (reason, None)
    assert found.last_attempt is None


async def test_delivery_of_a_deleted_subscription_has_no_due_time(
    rows: Rows, deliveries: DeliveryStore
) -> None:
    """The state lasts until the owner of the bucket cancels the delivery."""
    acme = await rows.tenant("acme")
    gone = await rows.subscription(acme, "gone", deleted=True)
    delivery_id = await rows.pending(gone, await rows.event(acme))
    found = await deliveries.get("acme", delivery_id)
    assert (found.state, found.subscription_id) == (DeliveryState.PENDING, "gone")
    assert (found.state_reason, found.next_attempt_time) == (None, None)
    assert await ids_of(deliveries, Selection(tenant_id="acme")) == [delivery_id]


async def test_first_attempt_success_shows_the_attempt_of_its_row(
    rows: Rows, deliveries: DeliveryStore
) -> None:
    acme = await rows.tenant("acme")
    delivery_id = await rows.finished(
        await rows.subscription(acme, "orders"), await rows.event(acme)
    )
    found = await deliveries.get("acme", delivery_id)
    assert (found.state, found.finish_time) == (DeliveryState.SUCCEEDED, rows.now)
    assert found.next_attempt_time is None
    page = await deliveries.attempts("acme", delivery_id, after=0, limit=9)
    assert page.attempts == [found.last_attempt]
    assert not page.has_more
    attempt = page.attempts[0]
    assert (attempt.number, attempt.record.kind) == (1, AttemptOutcome.ACCEPTED)
    assert (attempt.record.http_status, attempt.record.latency_us) == (204, 1_500)
    assert attempt.record.remote_address == "192.0.2.1:443"
    assert attempt.start_time_us == int(rows.now.timestamp()) * 1_000_000 - 1_500
    after = await deliveries.attempts("acme", delivery_id, after=1, limit=9)
    assert after.attempts == []


async def test_attempts_are_listed_oldest_first_in_pages(
    rows: Rows, deliveries: DeliveryStore
) -> None:
    acme = await rows.tenant("acme")
    orders = await rows.subscription(acme, "orders")
    delivery_id = await rows.finished(
        orders, await rows.event(acme), state="EXHAUSTED", attempt_count=5
    )
    for number in (3, 1, 5, 2, 4):
        await rows.attempt(delivery_id, number)
    first = await deliveries.attempts("acme", delivery_id, after=0, limit=3)
    assert ([a.number for a in first.attempts], first.has_more) == ([1, 2, 3], True)
    second = await deliveries.attempts("acme", delivery_id, after=3, limit=3)
    assert ([a.number for a in second.attempts], second.has_more) == ([4, 5], False)
    found = await deliveries.get("acme", delivery_id)
    assert found.last_attempt is not None
    assert (found.state, found.last_attempt.number) == (DeliveryState.EXHAUSTED, 5)


async def test_a_delivery_without_attempts_has_none(rows: Rows, deliveries: DeliveryStore) -> None:
    acme = await rows.tenant("acme")
    gone = await rows.subscription(acme, "gone", deleted=True)
    delivery_id = await rows.finished(
        gone,
        await rows.event(acme),
        state="CANCELLED",
        attempt_count=0,
        state_reason="SUBSCRIPTION_DELETED",
    )
    found = await deliveries.get("acme", delivery_id)
    assert found.state_reason is DeliveryStateReason.SUBSCRIPTION_DELETED
    assert (found.subscription_id, found.attempt_count, found.last_attempt) == ("gone", 0, None)
    assert (await deliveries.attempts("acme", delivery_id, after=0, limit=9)).attempts == []


async def test_a_delivery_is_found_in_its_own_tenant_and_across_tenants_only(
    rows: Rows, deliveries: DeliveryStore
) -> None:
    acme = await rows.tenant("acme")
    await rows.tenant("other")
    orders = await rows.subscription(acme, "orders")
    pending = await rows.pending(orders, await rows.event(acme))
    finished = await rows.finished(orders, await rows.event(acme))
    for delivery_id in (pending, finished):
        assert (await deliveries.get("-", delivery_id)).tenant_id == "acme"
        for tenant_id in ("other", "unknown"):
            with pytest.raises(NotFoundError) as refused:
                await deliveries.get(tenant_id, delivery_id)
            assert refused.value.reason == Reason.DELIVERY_NOT_FOUND
            with pytest.raises(NotFoundError):
                await deliveries.attempts(tenant_id, delivery_id, after=0, limit=9)


@pytest.fixture
async def mixed(rows: Rows) -> tuple[Place, Place, Place, list[UUID]]:
    """Two subscriptions of acme and one of another tenant, with deliveries in turn: id of all."""
    acme, other = await rows.tenant("acme"), await rows.tenant("other")
    places = (
        await rows.subscription(acme, "orders"),
        await rows.subscription(acme, "audit"),
        await rows.subscription(other, "orders"),
    )
    ids = []
    for number in range(24):
        place = places[number % 3]
        event_id = await rows.event(place.tenant_uid)
        match number // 3 % 4:
            case 0:
                ids.append(await rows.pending(place, event_id))
            case 1:
                ids.append(await rows.finished(place, event_id))
            case 2:
                ids.append(await rows.finished(place, event_id, state="EXHAUSTED", attempt_count=2))
            case _:
                ids.append(await rows.finished(place, event_id, state="CANCELLED", attempt_count=0))
    return (*places, ids)


@pytest.mark.parametrize("limit", [1, 4, 5, 100])
async def test_lists_merge_pending_and_finished_deliveries_newest_first(
    mixed: tuple[Place, Place, Place, list[UUID]], deliveries: DeliveryStore, limit: int
) -> None:
    ids = mixed[3]
    of_acme = [delivery_id for n, delivery_id in enumerate(ids) if n % 3 != 2]
    of_orders = ids[0::3]
    cases: list[tuple[Selection, Sequence[UUID]]] = [
        (Selection(tenant_id="acme"), of_acme),
        (Selection(tenant_id="acme", subscription=("acme", "orders")), of_orders),
        (Selection(tenant_id="-", subscription=("acme", "orders")), of_orders),
        (Selection(tenant_id="other"), ids[2::3]),
        (Selection(tenant_id="-"), ids),
    ]
    for selection, expected in cases:
        assert await ids_of(deliveries, selection, limit=limit) == list(expected[::-1])


@pytest.mark.parametrize(
    "states,places",
    [
        ({DeliveryState.PENDING}, {0}),
        ({DeliveryState.SUCCEEDED}, {1}),
        ({DeliveryState.EXHAUSTED}, {2}),
        ({DeliveryState.EXHAUSTED, DeliveryState.CANCELLED}, {2, 3}),
        ({DeliveryState.PENDING, DeliveryState.SUCCEEDED}, {0, 1}),
        ({DeliveryState.EXPIRED}, set()),
    ],
)
async def test_lists_filter_by_state(
    mixed: tuple[Place, Place, Place, list[UUID]],
    deliveries: DeliveryStore,
    states: set[DeliveryState],
    places: set[int],
) -> None:
    ids = mixed[3]
    wanted = [(n, d) for n, d in reversed(list(enumerate(ids))) if n // 3 % 4 in places]
    chosen = frozenset(states)
    everywhere = Selection(tenant_id="-", states=chosen)
    assert await ids_of(deliveries, everywhere) == [d for _, d in wanted]
    of_acme = Selection(tenant_id="acme", states=chosen)
    assert await ids_of(deliveries, of_acme) == [d for n, d in wanted if n % 3 != 2]
    of_audit = Selection(tenant_id="acme", subscription=("acme", "audit"), states=chosen)
    assert await ids_of(deliveries, of_audit) == [d for n, d in wanted if n % 3 == 1]


async def test_list_by_event_has_pending_and_finished_deliveries(
    rows: Rows, deliveries: DeliveryStore
) -> None:
    acme = await rows.tenant("acme")
    places = [await rows.subscription(acme, f"s{n}") for n in range(6)]
    event_id, other_event = await rows.event(acme), await rows.event(acme)
    ids = []
    for index, place in enumerate(places):
        if index % 2:
            ids.append(await rows.pending(place, event_id, index=index))
        else:
            ids.append(await rows.finished(place, event_id, index=index))
        await rows.pending(place, other_event, index=index)
    ids.sort(reverse=True)
    for tenant_id in ("acme", "-"):
        selection = Selection(tenant_id=tenant_id, event_id=event_id)
        assert await ids_of(deliveries, selection, limit=4) == ids
    one = Selection(tenant_id="acme", event_id=event_id, subscription=("acme", "s3"))
    page = await deliveries.page(one, before=LAST_UUID, limit=9)
    assert [d.subscription_id for d in page.deliveries] == ["s3"]
    pending = Selection(
        tenant_id="acme", event_id=event_id, states=frozenset({DeliveryState.PENDING})
    )
    assert len(await ids_of(deliveries, pending)) == 3


async def test_missing_tenant_subscription_and_event_have_their_own_errors(
    rows: Rows, deliveries: DeliveryStore
) -> None:
    other_event = await rows.event(await rows.tenant("other"))
    await rows.tenant("acme")
    cases = [
        (Selection(tenant_id="unknown"), Reason.TENANT_NOT_FOUND),
        (Selection(tenant_id="-", subscription=("unknown", "x")), Reason.TENANT_NOT_FOUND),
        (Selection(tenant_id="acme", subscription=("acme", "x")), Reason.SUBSCRIPTION_NOT_FOUND),
        (Selection(tenant_id="acme", event_id=other_event), Reason.EVENT_NOT_FOUND),
        (Selection(tenant_id="-", event_id=LAST_UUID), Reason.EVENT_NOT_FOUND),
    ]
    for selection, reason in cases:
        with pytest.raises(NotFoundError) as refused:
            await deliveries.page(selection, before=LAST_UUID, limit=9)
        assert refused.value.reason == reason


async def test_a_recreated_subscription_inherits_no_deliveries(
    rows: Rows, deliveries: DeliveryStore
) -> None:
    acme = await rows.tenant("acme")
    old = await rows.finished(
        await rows.subscription(acme, "orders", deleted=True), await rows.event(acme)
    )
    named = Selection(tenant_id="acme", subscription=("acme", "orders"))
    assert await ids_of(deliveries, named) == [old]
    new = await rows.pending(await rows.subscription(acme, "orders"), await rows.event(acme))
    assert await ids_of(deliveries, named) == [new]


async def test_delivery_that_moves_between_tables_is_listed_exactly_once(
    rows: Rows, deliveries: DeliveryStore
) -> None:
    """Every read has each delivery once while deliveries are finished and retried."""
    acme = await rows.tenant("acme")
    orders = await rows.subscription(acme, "orders")
    event_id = await rows.event(acme)
    ids = [await rows.pending(orders, event_id, index=index) for index in range(40)]
    selections = [
        Selection(tenant_id="acme"),
        Selection(tenant_id="-"),
        Selection(tenant_id="acme", event_id=event_id),
        Selection(tenant_id="acme", subscription=("acme", "orders")),
    ]
    moves = 0

    async def keep_moving() -> None:
        nonlocal moves
        for move in itertools.cycle((rows.finish, rows.retry)):
            for delivery_id in ids:
                await move(orders, delivery_id)
                moves += 1

    moving = asyncio.create_task(keep_moving())
    try:
        for read in range(60):
            page = await deliveries.page(selections[read % 4], before=LAST_UUID, limit=1_000)
            assert sorted(d.delivery_id for d in page.deliveries) == ids
            await deliveries.get("acme", ids[read % len(ids)])
    finally:
        moving.cancel()
        await asyncio.wait([moving])
    assert moves > len(ids)
