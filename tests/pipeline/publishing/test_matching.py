"""Matching: the index of subscriptions, and the effect of a change on the next publish."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline_service.domain.subscription import PayloadFormat, matches
from hookline_service.pipeline.publishing.matching import ANSWER_WEIGHT, Answers, TenantIndex
from hookline_service.store.routes import IndexRow
from hookline_service.store.subscriptions import Subscriptions
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.rival import rival, take_key, until_blocked
from tests.pipeline.subscribing import create
from tests.waiting import until

TARGET = "http://127.0.0.1:1024/"

SEGMENTS = st.sampled_from(["a", "b", "ab", "hookline"])
TYPES = st.lists(SEGMENTS, min_size=1, max_size=3).map(".".join)
PATTERNS = st.one_of(TYPES, TYPES.map(lambda stem: f"{stem}.*"), st.just("*"))


def row(number: int, patterns: Sequence[str], *, is_deleted: bool = False) -> IndexRow:
    """Return a subscription as a row of the index."""
    return IndexRow(
        subscription_uid=UUID(int=number),
        bucket=0,
        event_types=tuple(patterns),
        is_deleted=is_deleted,
        first_delay_s=0.0,
        max_attempts=10,
        payload_format=PayloadFormat.STANDARD,
        is_ordered=False,
    )


@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 5), st.lists(PATTERNS, min_size=1, max_size=4), st.booleans()
        ),
        max_size=20,
    ),
    event_types=st.lists(TYPES, min_size=1, max_size=5),
)  # fmt: skip
def test_index_matches_as_the_patterns_define(
    changes: list[tuple[int, list[str], bool]], event_types: list[str]
) -> None:
    index = TenantIndex("acme", UUID(int=1))
    live: dict[UUID, list[str]] = {}
    for epoch, (number, patterns, is_deleted) in enumerate(changes):
        index.apply(epoch, [row(number, patterns, is_deleted=is_deleted)])
        live[UUID(int=number)] = [] if is_deleted else patterns
        for event_type in event_types:  # asked between the changes, too: no answer may go stale
            found = [route.subscription_uid for route in index.match(event_type)]
            assert len(found) == len(set(found)), "each once, however many patterns of its cover"
            assert set(found) == {
                uid
                for uid, wanted in live.items()
                if any(matches(pattern, event_type) for pattern in wanted)
            }


def test_removing_the_last_exact_type_keeps_the_prefix() -> None:
    index = TenantIndex("acme", UUID(int=1))
    index.apply(1, [row(0, ["a.b"]), row(1, ["a.*"])])
    index.apply(2, [row(0, ["c"])])
    assert [route.subscription_uid for route in index.match("a.z")] == [UUID(int=1)]


def test_number_of_cached_matches_of_all_tenants_is_bounded() -> None:
    answers = Answers(most=100 * ANSWER_WEIGHT)
    indexes = [TenantIndex(f"t{n}", UUID(int=n), answers) for n in range(50)]
    for index in indexes:
        index.apply(1, [row(1, ["order.*"])])

    def remembered() -> int:
        return sum(len(index._cached) for index in indexes)  # noqa: SLF001 - what it costs

    for number in range(1_000):
        assert not indexes[number % 50].match(f"type{number}")
        assert remembered() <= 100
    for index in indexes:
        assert len(index.match("order.created")) == 1
        assert index.match("order.created") is index.match("order.created")


@pytest.mark.parametrize(
    "pattern, event_type, is_covered",
    [
        ("order.created", "order.created", True),
        ("order.created", "order.created.eu", False),
        ("order.*", "order.created", True),
        ("order.*", "order.created.eu", True),
        ("order.*", "order", False),
        ("order.*", "orders.created", False),
        ("*", "order", True),
        ("*", "hookline.delivery.exhausted", False),
        ("hookline.*", "hookline.delivery.exhausted", True),
        ("hookline.delivery.exhausted", "hookline.delivery.exhausted", True),
        ("*", "hooklines.a", True),
    ],
)
def test_pattern_covers_event_types(pattern: str, event_type: str, is_covered: bool) -> None:  # noqa: FBT001
    index = TenantIndex("acme", UUID(int=1))
    index.apply(1, [row(1, [pattern])])
    assert matches(pattern, event_type) is is_covered
    assert bool(index.match(event_type)) is is_covered


# --------------------------------------------------------------------------- the next publish


async def test_next_publish_on_every_node_uses_a_subscription_change(
    rig: Rig, subscriptions: Subscriptions
) -> None:
    async with running(rig.url, seed=2) as other:
        await other.publisher.publish("acme", [order_created(0)])

        async def counts(event_type: str = "order.created") -> list[int]:
            results = [
                await node.publisher.publish("acme", [order_created(type=event_type)])
                for node in (rig, other)
            ]
            return [result[0].delivery_count for result in results]

        await create(subscriptions, "first", TARGET)
        assert await counts() == [1, 1]
        await create(subscriptions, "second", TARGET, "order.*", "order.created", "*")
        assert await counts() == [2, 2], "a subscription is counted once"
        await create(subscriptions, "third", TARGET, "user.registered")
        assert await counts() == [2, 2]
        assert await counts("user.registered") == [3, 3]
        await subscriptions.pause("acme", "first")
        assert await counts() == [2, 2], "what is paused is held, not missed"
        await subscriptions.resume("acme", "first")
        assert await counts() == [2, 2]
        await subscriptions.delete("acme", "second")
        assert await counts() == [1, 1]
        await subscriptions.delete("acme", "first")
        assert await counts() == [0, 0]
        await create(subscriptions, "first", TARGET)
        assert await counts() == [1, 1]


async def test_every_subscription_change_increases_the_epoch(
    rig: Rig, subscriptions: Subscriptions
) -> None:
    async def epoch() -> int:
        rows = await rig.database.fetch("SELECT epoch FROM tenants")
        return int(rows[0]["epoch"])

    seen = [await epoch()]
    await create(subscriptions, "first", TARGET)
    seen.append(await epoch())
    await subscriptions.pause("acme", "first")
    seen.append(await epoch())
    await subscriptions.resume("acme", "first")
    seen.append(await epoch())
    await subscriptions.delete("acme", "first")
    seen.append(await epoch())
    assert seen == sorted(set(seen))


async def test_paused_subscription_holds_later_deliveries(
    rig: Rig, subscriptions: Subscriptions, receiver: Receiver
) -> None:
    await create(subscriptions, "first", receiver.url)
    await rig.publisher.publish("acme", [order_created(1)])
    await receiver.wait_for(1)
    (lane,) = rig.lanes.all()
    await subscriptions.pause("acme", "first")
    rig.changes.poke()
    await until(lambda: not lane.sends(), "the lane has the change")

    (held,) = await rig.publisher.publish("acme", [order_created(2)])
    assert held.delivery_count == 1
    assert [row["event_id"] for row in await rig.pending()][-1] == held.event_id
    assert len(receiver.ids) == 1

    await subscriptions.resume("acme", "first")
    rig.changes.poke()
    await receiver.wait_for(2)


# -------------------------------------------------------------------------------- tombstones


async def test_delivery_published_before_a_delete_is_cancelled_by_the_owner(
    rig: Rig, subscriptions: Subscriptions
) -> None:
    """The delete waits for the commit; the owner of the bucket then cancels the new row."""
    await create(subscriptions, "first", TARGET)
    blocker = await rig.tenant("zeta")
    await rig.publisher.publish("zeta", [order_created(0)])
    await rig.publisher.publish("acme", [order_created(0)])

    async with rival(rig.url) as other:
        await take_key(other, blocker, "k")  # the group has locked acme's epoch and waits here
        publishing = [
            asyncio.create_task(rig.publisher.publish("acme", [order_created(1)])),
            asyncio.create_task(
                rig.publisher.publish("zeta", [order_created(1, idempotency_key="k")])
            ),
        ]
        await until_blocked(rig.database)
        deleting = asyncio.create_task(subscriptions.delete("acme", "first"))
        await until_blocked(rig.database, "calls")
        await other.execute("ROLLBACK")
        ((published,), _), _ = await asyncio.gather(asyncio.gather(*publishing), deleting)

    assert published.delivery_count == 1
    rig.changes.poke()
    await until(lambda: _is_cancelled(rig, published.event_id), "the owner has cancelled it")
    assert await rig.pending() == []


async def test_delivery_stored_after_the_cancellation_is_cancelled_by_the_sweep(
    rig: Rig, subscriptions: Subscriptions
) -> None:
    uid = await create(subscriptions, "first", TARGET)
    await subscriptions.pause("acme", "first")
    await rig.publisher.publish("acme", [order_created(1)])
    await subscriptions.delete("acme", "first")
    rig.changes.poke()
    await until(lambda: _is_empty(rig), "the owner has cancelled all")

    late = rig.new_uid()
    await rig.database.fetch(
        """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid,
                                           event_id)
           SELECT bucket, hookline_now(), 1, $2, subscription_uid, $2 FROM subscriptions
           WHERE subscription_uid = $1""",
        uid,
        late,
    )
    rig.sweeper.sweep_soon()
    await until(lambda: _is_cancelled(rig, late), "the sweep has found it")


async def _is_cancelled(rig: Rig, event_id: UUID) -> bool:
    rows = await rig.database.fetch(
        "SELECT state, state_reason FROM deliveries WHERE event_id = $1", event_id
    )
    return [tuple(row) for row in rows] == [("CANCELLED", "SUBSCRIPTION_DELETED")]


async def _is_empty(rig: Rig) -> bool:
    return await rig.pending() == []
