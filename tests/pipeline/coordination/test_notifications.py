"""Notifications hasten what polling finds, cost a single node nothing, and may be lost.

Rule 19. The sweep, the change log's interval and the heartbeat are turned off here, or far away:
what happens, happens on a notification.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest

from hookline_service.domain.event import EventType
from hookline_service.domain.ids import BUCKET_COUNT, bucket_of
from hookline_service.pipeline.coordination import notifications
from hookline_service.pipeline.coordination.notifications import (
    ALL_NODES,
    MAX_NAMED,
    channel_of,
    named,
)
from hookline_service.store.notifying import MAX_PAYLOAD_BYTES
from tests.pipeline.pair import pair, shared, uid_of
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.wire import Wire
from tests.waiting import until

Notification = tuple[str, str]


@pytest.fixture
def no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """No node sweeps or reads the change log without a notification."""

    async def nothing(_self: object) -> None:
        pass

    monkeypatch.setattr("hookline_service.pipeline.dispatch.sweep.Sweeper.sweep", nothing)
    monkeypatch.setattr("hookline_service.pipeline.coordination.changes.INTERVAL_S", 3_600.0)


def words_of(node: Rig, monkeypatch: pytest.MonkeyPatch) -> list[list[Notification]]:
    """What a node says from now on: (channel, payload) each, a list a statement."""
    statements: list[list[Notification]] = []
    notify_really = node.notify_store.notify

    async def kept(messages: Sequence[Notification]) -> None:
        statements.append(list(messages))
        await notify_really(messages)

    monkeypatch.setattr(node.notify_store, "notify", kept)
    return statements


def due(statements: list[list[Notification]]) -> list[Notification]:
    """Of these, the notifications of due deliveries."""
    return [word for words in statements for word in words if word[1].startswith("d")]


class Silence:
    """A node's next statement is under way until `end`; what came up meanwhile is said after it."""

    def __init__(self, node: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self._notify = node.notify_store.notify
        self._has_begun, self._may_end = asyncio.Event(), asyncio.Event()
        self._node = node
        monkeypatch.setattr(node.notify_store, "notify", self._slowly)

    async def begin(self) -> None:
        """Let the node say that it is there, and be stuck with it."""
        self._node.notifier.notify_moved()
        await self._has_begun.wait()

    def end(self) -> None:
        """Let it go on."""
        self._may_end.set()

    async def _slowly(self, messages: Sequence[Notification]) -> None:
        self._has_begun.set()
        await self._may_end.wait()
        await self._notify(messages)


async def say(url: str, channel: str, payload: str) -> None:
    """Send a notification, as any session can."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT pg_notify($1, $2)", channel, payload)
    finally:
        await connection.close()


@pytest.mark.usefixtures("no_polling")
async def test_an_event_accepted_for_another_node_is_sent_on_notification(
    database_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(database_url) as (one, two):
        tenant_uid = await one.tenant()
        await one.subscription_as(uid_of(two), tenant_uid, receiver.url)
        words = words_of(one, monkeypatch)

        await one.publisher.publish("acme", [order_created()])

        await until(lambda: two.recorder.recorded == 1, "the owner has sent it")
        assert one.recorder.recorded == 0
        ((channel, payload),) = due(words)
        assert channel == channel_of(two.ownership.node_id)
        assert len(payload) == 1 + 22


@pytest.mark.usefixtures("no_polling")
async def test_a_node_that_owns_everything_sends_no_notification(
    database_url: str, receiver: Receiver
) -> None:
    async with running(database_url, has_word=True) as rig:
        tenant_uid = await rig.tenant()
        uid = await rig.subscription(tenant_uid, receiver.url)
        await until(lambda: rig.notifier.sent == 1, "it has said that it came")

        for number in range(5):
            await rig.publisher.publish("acme", [order_created(number)])
        await until(lambda: rig.recorder.recorded == 5, "all are sent")
        await rig.set_state(uid, "PAUSED")
        await until(lambda: rig.lanes.counts().held == 1, "it is held")

        assert rig.notifier.sent == 1


async def test_a_lost_notification_is_counted_and_the_sweep_finds_the_delivery(
    database_url: str, receiver: Receiver
) -> None:
    async with (
        Wire(database_url) as wire,
        pair(database_url, session_urls={"notify": wire.url}) as (one, two),
    ):
        tenant_uid = await one.tenant()
        await one.subscription_as(uid_of(two), tenant_uid, receiver.url)
        said = one.notifier.sent
        wire.close()

        await one.publisher.publish("acme", [order_created()])

        await until(lambda: two.recorder.recorded == 1, "the owner's sweep has found it")
        await until(lambda: one.notifier.failures > 0, "the failure is counted")
        assert one.notifier.sent == said


async def test_a_node_that_begins_to_listen_looks_for_what_it_missed(database_url: str) -> None:
    """It has the buckets, and the newcomer's word came while it was still connecting."""
    async with (
        running(database_url, lease_s=300.0) as one,
        running(database_url, seed=2, has_word=True, lease_s=300.0) as two,
    ):
        await until(lambda: two.notifier.sent > 0, "the newcomer has said that it is there")
        assert two.ownership.buckets == frozenset()

        one.notifier.start()

        await shared(one, two)


async def test_a_node_listens_again_after_a_lost_connection(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "LISTEN_INTERVAL_S", 0.05)
    async with pair(database_url) as (one, two):
        await two.database.fetch(
            """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'hookline notify'"""
        )

        received, bucket = two.notifier.received, min(two.ownership.buckets)

        def is_received() -> bool:
            one.notifier.notify_changed(bucket)
            return two.notifier.received > received

        await until(is_received, "the other receives again")


@pytest.mark.usefixtures("no_polling")
async def test_an_expired_node_listens_on_the_channel_of_its_new_id(
    database_url: str, receiver: Receiver
) -> None:
    async with pair(database_url) as (one, two):
        old_id = two.ownership.node_id
        await one.database.fetch("DELETE FROM nodes WHERE node_id = $1", old_id)
        await two.ownership.heartbeat()
        assert two.ownership.node_id != old_id
        await shared(one, two)
        tenant_uid = await one.tenant()
        await one.subscription_as(uid_of(two), tenant_uid, receiver.url)

        await one.publisher.publish("acme", [order_created()])

        await until(lambda: two.recorder.recorded == 1, "the owner has sent it")


@pytest.mark.usefixtures("no_polling")
async def test_notifications_queued_during_a_statement_share_the_next_one(
    database_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(database_url) as (one, two):
        tenant_uid = await one.tenant()
        for number in range(10):
            await one.subscription_as(uid_of(two), tenant_uid, receiver.url, f"n.{number}")
        words = words_of(one, monkeypatch)
        silence = Silence(one, monkeypatch)
        await silence.begin()
        for number in [*range(10), *range(10)]:
            await one.publisher.publish("acme", [order_created(type=f"n.{number}")])
        assert words == []
        silence.end()

        await until(lambda: two.recorder.recorded == 20, "the owner has sent all")
        assert len(words) == 2
        ((_, payload),) = due(words)
        assert len(payload) == 1 + 10 * 22


@pytest.mark.usefixtures("no_polling")
@pytest.mark.parametrize("count,sweeps", [(1_000, 0), (MAX_NAMED + 100, 1)])
async def test_notifications_of_many_subscriptions_are_bounded(
    database_url: str, monkeypatch: pytest.MonkeyPatch, count: int, sweeps: int
) -> None:
    async with pair(database_url) as (one, two):
        words, swept = words_of(one, monkeypatch), list[bool]()
        monkeypatch.setattr(two.sweeper, "sweep_soon", lambda: swept.append(True))
        uids = {uid_of(two) for _ in range(count)}
        for uid in uids:
            one.notifier.notify_due(uid, bucket_of(uid))

        named = min(count, MAX_NAMED)
        await until(lambda: len(list(two.lanes.all())) == named, "the owner received each")
        await until(lambda: len(swept) == sweeps, "of more than can be named it sweeps")
        assert max(len(payload) for _, payload in due(words)) <= MAX_PAYLOAD_BYTES
        assert {lane.subscription_uid for lane in two.lanes.all()} <= uids


@pytest.mark.usefixtures("no_polling")
async def test_a_pause_and_a_resume_on_another_node_are_applied_on_notification(
    database_url: str, receiver: Receiver
) -> None:
    async with pair(database_url) as (one, two):
        tenant_uid = await one.tenant()
        uid = await one.subscription_as(uid_of(two), tenant_uid, receiver.url)
        await one.publisher.publish("acme", [order_created()])
        await until(lambda: two.recorder.recorded == 1, "its lane stands")

        await one.set_state(uid, "PAUSED")
        await until(lambda: two.lanes.counts().held == 1, "the owner holds it")
        await one.publisher.publish("acme", [order_created()])
        await one.set_state(uid, "ACTIVE")

        await until(lambda: two.recorder.recorded == 2, "the owner has sent what was held")


@pytest.mark.usefixtures("no_polling")
async def test_a_retry_on_another_node_is_sent_on_notification_although_its_lane_was_evicted(
    database_url: str, receiver: Receiver
) -> None:
    async with pair(database_url) as (one, two):
        tenant_uid = await one.tenant()
        receiver.answers = 500
        await one.subscription_as(uid_of(two), tenant_uid, receiver.url, max_attempts=1)
        await one.publisher.publish("acme", [order_created()])
        await until(lambda: two.recorder.recorded == 1, "it is exhausted")
        for lane in two.lanes.all():
            lane.close_circuit()
        two.lanes.shrink_to(0)
        assert list(two.lanes.all()) == []
        receiver.answers = 200
        ((delivery_id, *_),) = await one.database.fetch("SELECT delivery_id FROM deliveries")

        await one.delivery_actions.retry("acme", delivery_id)

        await until(lambda: two.recorder.recorded == 2, "the owner has sent it again")
        assert [row["state"] for row in await one.finished()] == ["SUCCEEDED"]


@pytest.mark.usefixtures("no_polling")
async def test_a_change_of_event_types_notifies_all_nodes(database_url: str) -> None:
    async with pair(database_url) as (one, two):
        two.event_types.event_types.append(EventType(name="n.0", revision=3))
        await one.database.fetch("INSERT INTO change_log (kind) VALUES ('EVENT_TYPE')")

        one.changes.poke()

        async def is_known() -> bool:
            return await two.catalog.check("acme", [order_created(type="n.0")]) == [3]

        await until(is_known, "the other has read them")


async def test_a_notification_of_a_bucket_of_another_node_is_not_forwarded(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes that each took the other for the owner would never stop."""
    async with pair(database_url) as (one, two):
        uid, received = uid_of(one), two.notifier.received
        words = words_of(two, monkeypatch)
        (names,) = named([uid])

        await say(database_url, channel_of(two.ownership.node_id), f"d{names}")
        await until(lambda: two.notifier.received > received, "it is received")
        two.notifier.notify_moved()
        await until(lambda: bool(words), "it has said what there was to say")

        assert due(words) == []
        assert two.lanes.get(uid) is None


@pytest.mark.usefixtures("no_polling")
@pytest.mark.parametrize(
    "payload", ["", "d", "dnonsense", "d" + "é" * 30, "z", "zfuture word", "s-"]
)
async def test_an_invalid_notification_has_no_effect(
    database_url: str, receiver: Receiver, payload: str
) -> None:
    async with pair(database_url) as (one, two):
        received = two.notifier.received
        for channel in (ALL_NODES, channel_of(two.ownership.node_id)):
            await say(database_url, channel, payload)
        await until(lambda: two.notifier.received == received + 2, "it is received")

        tenant_uid = await one.tenant()
        await one.subscription_as(uid_of(two), tenant_uid, receiver.url)
        await one.publisher.publish("acme", [order_created()])

        await until(lambda: two.recorder.recorded == 1, "the owner has sent it")


@pytest.mark.usefixtures("no_polling")
async def test_a_queued_notification_of_a_bucket_that_was_taken_since_touches_its_lane(
    database_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is addressed when it is sent, to the owner at that time."""
    async with pair(database_url) as (one, two):
        tenant_uid = await one.tenant()
        await one.subscription_as(uid_of(two), tenant_uid, receiver.url)
        silence = Silence(one, monkeypatch)
        await silence.begin()
        await one.publisher.publish("acme", [order_created()])
        two.deliverer.pause()
        two.ownership.begin_leaving()
        await until(lambda: two.ownership.buckets == frozenset(), "it has given everything")
        await one.ownership.heartbeat()
        assert len(one.ownership.buckets) == BUCKET_COUNT
        silence.end()

        await until(lambda: one.recorder.recorded == 1, "it has sent it itself")
