"""Ambiguous commits: a statement without an answer is looked up, and never stored twice."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from hookline_service.domain.errors import AlreadyExistsError, Reason, UnavailableError
from hookline_service.domain.event import NewEvent
from hookline_service.pipeline.publishing.commit import MAX_LOSSES, GroupLimits
from hookline_service.pipeline.publishing.group import Published
from hookline_service.store.database import OutcomeUnknownError
from hookline_service.store.publishing import PublishRows, PublishStore
from tests.pipeline.keys import at_lookups
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.rival import STALL, rival, take_key, until_blocked
from tests.pipeline.wire import Wire
from tests.waiting import until

MARK = b'"mark"'
LOCK_ACME = "SELECT FROM tenants WHERE tenant_id = 'acme' FOR UPDATE"
BUMP_ACME = "UPDATE tenants SET epoch = epoch + 1 WHERE tenant_id = 'acme'"


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    """Return the proxy between publishing and Postgres."""
    async with Wire(database_url) as wire:
        yield wire


@pytest.fixture
async def rig(database_url: str, wire: Wire) -> AsyncIterator[Rig]:
    """Return a node that publishes through the wire; tenant acme has been matched once."""
    async with running(database_url, session_urls={"publish": wire.url}) as node:
        await node.make_clock_turnable()
        await node.tenant()
        yield node


@pytest.fixture
async def subscribed(rig: Rig, receiver: Receiver) -> Receiver:
    """Return the target of acme's only subscription, whose lane is in memory and complete."""
    (tenant,) = await rig.database.fetch("SELECT tenant_uid FROM tenants WHERE tenant_id = 'acme'")
    await rig.subscription(tenant["tenant_uid"], receiver.url)
    await _publish(rig, order_created(0))
    await receiver.wait_for(1)
    await until(lambda: rig.recorder.recorded == 1, "the first delivery is recorded")
    return receiver


async def test_commit_with_a_lost_answer_is_found(
    rig: Rig, wire: Wire, subscribed: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_self: object) -> None:
        pass

    monkeypatch.setattr("hookline_service.pipeline.dispatch.sweep.Sweeper.sweep", nothing)
    wire.cut_answer = MARK
    (published,) = await _publish(rig, _marked())

    assert wire.is_cut.is_set()
    assert await _stored(rig) == [published.event_id]
    await subscribed.wait_for(2)  # its lane is DIRTY: a refill found it, without any sweep
    await until(lambda: rig.recorder.recorded == 2, "the delivery is recorded")
    assert set(subscribed.counts.values()) == {1}


async def test_statement_that_did_not_reach_the_database_is_sent_again(
    rig: Rig, wire: Wire, subscribed: Receiver
) -> None:
    wire.cut_request = MARK
    (published,) = await _publish(rig, _marked())

    assert wire.is_cut.is_set()
    assert await _stored(rig) == [published.event_id]
    await subscribed.wait_for(2)


async def test_lost_statement_that_waits_for_a_lock_stores_nothing_when_it_runs(
    rig: Rig, wire: Wire
) -> None:
    """Postgres detects a lost client late: the statement would commit much later."""
    await _publish(rig, order_created(0))

    async with rival(rig.url) as other:
        await other.execute(STALL)
        wire.cut_sent = MARK
        publishing = asyncio.create_task(_publish(rig, _marked()))
        await wire.is_cut.wait()
        await until(lambda: wire.connections >= 2, "publishing has come back")
        await until_blocked(rig.database, count=2)  # the lost statement, and the next
        await other.execute("COMMIT")
        (published,) = await publishing

    assert await _stored(rig) == [published.event_id]


async def test_lost_statement_that_arrives_late_stores_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement was in a buffer, and runs after it was given up and sent again."""
    await _publish(rig, order_created(0))
    late: list[PublishRows] = []
    write = PublishStore.write

    async def lose(store: PublishStore, rows: PublishRows) -> set[UUID] | None:
        if late:
            return await write(store, rows)
        late.append(rows)
        raise OutcomeUnknownError("it lies in a buffer")

    monkeypatch.setattr(PublishStore, "write", lose)
    (published,) = await _publish(rig, _marked())

    assert await write(rig.publish_store, late[0]) == set()
    assert await _stored(rig) == [published.event_id]


async def test_statement_that_arrives_twice_is_stored_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may send a statement twice; the second run finds its ids and is looked up."""
    await _publish(rig, order_created(0))
    write = PublishStore.write

    async def send_twice(store: PublishStore, rows: PublishRows) -> set[UUID] | None:
        await write(store, rows)
        return await write(store, rows)

    monkeypatch.setattr(PublishStore, "write", send_twice)
    (published,) = await _publish(rig, _marked())

    assert await _stored(rig) == [published.event_id]


async def test_publish_is_stored_once_after_its_backend_is_killed(rig: Rig) -> None:
    await _publish(rig, order_created(0))

    async with rival(rig.url) as other:
        await other.execute(STALL)
        publishing = asyncio.create_task(_publish(rig, _marked()))
        await until_blocked(rig.database)
        await rig.database.fetch(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE application_name = 'hookline publish' AND datname = current_database()"""
        )
        await other.execute("COMMIT")
        (published,) = await publishing

    assert await _stored(rig) == [published.event_id]


async def test_statement_beyond_its_deadline_is_cancelled_and_stores_nothing(
    database_url: str,
) -> None:
    async with running(database_url, publish_timeout_s=0.3) as rig:
        await rig.tenant()
        await _publish(rig, order_created(0))
        async with rival(rig.url) as other:
            await other.execute(STALL)
            with pytest.raises(UnavailableError) as refusal:
                await _publish(rig, _marked())  # lost twice, and nothing is stored
            await other.execute("COMMIT")
        assert refusal.value.reason is Reason.DATABASE_UNAVAILABLE
        assert await _stored(rig) == []
        await _publish(rig, _marked())


async def test_publish_whose_statement_is_lost_repeatedly_is_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write closes its connection and stores nothing."""
    await _publish(rig, order_created(0))

    async def lose(_store: PublishStore, _rows: PublishRows) -> set[UUID] | None:
        raise OutcomeUnknownError("the server fell over")

    monkeypatch.setattr(PublishStore, "write", lose)
    with pytest.raises(UnavailableError) as refusal:
        await _publish(rig, _marked())

    assert refusal.value.reason is Reason.DATABASE_UNAVAILABLE
    assert await _stored(rig) == []


async def test_lost_answer_is_resolved_for_each_tenant(rig: Rig, wire: Wire) -> None:
    """The epoch of one of two tenants had moved: only the events of the other are stored."""
    globex = await rig.tenant("globex")
    await _publish(rig, order_created(0))
    await rig.publisher.publish("globex", [order_created(0)])
    await rig.database.fetch("UPDATE tenants SET epoch = epoch + 1 WHERE tenant_uid = $1", globex)

    wire.cut_answer = MARK
    results = await asyncio.gather(
        _publish(rig, _marked()), rig.publisher.publish("globex", [_marked()])
    )

    assert set(await _stored(rig)) == {result[0].event_id for result in results}


async def test_calls_with_keys_keep_their_results_after_a_lost_commit_answer(
    rig: Rig, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call is stored, one deduplicated, one refused; the last statement's answer is lost."""
    (first,) = await _publish(rig, _marked(idempotency_key="old"))

    async def lose_answer() -> None:
        wire.cut_answer = MARK

    at_lookups(monkeypatch, after=lose_answer)
    new, old, reused = await asyncio.gather(
        _publish(rig, order_created(data=b'"mark"', idempotency_key="new")),
        _publish(rig, _marked(idempotency_key="old")),
        _publish(rig, _marked(idempotency_key="old", subject="another")),
        return_exceptions=True,
    )

    assert wire.is_cut.is_set()
    assert isinstance(new, list)
    assert isinstance(old, list)
    assert (old[0].event_id, old[0].deduplicated) == (first.event_id, True)
    assert isinstance(reused, AlreadyExistsError)
    assert await _stored(rig) == [first.event_id, new[0].event_id]
    assert not new[0].deduplicated


async def test_lost_statement_with_keys_is_run_again(
    rig: Rig, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = await _publish(rig, _marked(idempotency_key="old"))

    async def lose_request() -> None:
        wire.cut_request = b"" if wire.is_cut.is_set() else MARK

    at_lookups(monkeypatch, after=lose_request)
    new, old = await asyncio.gather(
        _publish(rig, _marked(idempotency_key="new")),
        _publish(rig, _marked(idempotency_key="old")),
    )

    assert wire.is_cut.is_set()
    assert (old[0].event_id, old[0].deduplicated) == (first.event_id, True)
    assert await _stored(rig) == [first.event_id, new[0].event_id]


async def test_results_decided_before_a_lost_statement_are_decided_again(
    rig: Rig, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key that was taken has expired when the group runs again."""
    await _publish(rig, order_created(1, idempotency_key="k"))
    (tenant,) = await rig.database.fetch("SELECT tenant_uid FROM tenants")

    async def lose_request() -> None:
        wire.cut_request, wire.is_open = tenant["tenant_uid"].bytes, False

    at_lookups(monkeypatch, after=lose_request)
    publishing = asyncio.create_task(_publish(rig, _marked(idempotency_key="k")))
    await wire.is_cut.wait()
    await rig.database.fetch("DELETE FROM idempotency_keys")
    wire.is_open = True
    (published,) = await publishing

    assert not published.deduplicated
    assert await _stored(rig) == [published.event_id]


async def test_lane_created_during_the_commit_gets_a_delivery_once(
    rig: Rig, wire: Wire, receiver: Receiver
) -> None:
    """The sweep finds the row between its commit and the answer, and the refill sends it."""
    (tenant,) = await rig.database.fetch("SELECT tenant_uid FROM tenants WHERE tenant_id = 'acme'")
    await rig.subscription(tenant["tenant_uid"], receiver.url, max_in_flight=1)

    wire.hold_answer = MARK
    publishing = asyncio.create_task(_publish(rig, _marked()))
    await wire.is_held.wait()
    rig.sweeper.sweep_soon()
    await receiver.wait_for(1)
    await until(lambda: rig.recorder.recorded == 1, "the delivery is recorded")
    wire.release()
    await publishing
    await _publish(rig, order_created(2))  # after whatever else the lane was handed
    await until(lambda: rig.recorder.recorded == 2, "the second delivery is recorded")

    assert len(receiver.ids) == len(set(receiver.ids)) == 2


async def test_refill_does_not_read_a_delivery_that_is_being_committed(
    rig: Rig, wire: Wire, subscribed: Receiver
) -> None:
    """The row is announced to an existing lane, and handed to it after the commit."""
    wire.hold_answer = MARK
    publishing = asyncio.create_task(_publish(rig, _marked()))
    await wire.is_held.wait()
    (lane,) = rig.lanes.all()
    rig.sweeper.sweep_soon()
    rig.lanes.touch(lane.subscription_uid, lane.bucket)
    await until(lambda: lane.state == "COMPLETE", "the lane is refilled")
    assert not lane.queue
    wire.release()
    await publishing
    await subscribed.wait_for(2)
    await until(lambda: rig.recorder.recorded == 2, "the delivery is recorded")
    assert set(subscribed.counts.values()) == {1}


@pytest.mark.parametrize("is_stored", [True, False])
async def test_locked_tenant_row_after_lost_answer_delays_no_other_tenant(
    rig: Rig, wire: Wire, *, is_stored: bool
) -> None:
    await rig.tenant("globex")
    await _publish(rig, order_created(0))
    await rig.publisher.publish("globex", [order_created(0)])
    async with rival(rig.url) as other:
        await other.execute(LOCK_ACME)
        wire.cut_answer, wire.cut_request = (MARK, b"") if is_stored else (b"", MARK)
        lost = asyncio.create_task(_publish(rig, _marked()))
        await wire.is_cut.wait()
        await until_blocked(rig.database, "contended")
        for number in range(3):
            await rig.publisher.publish("globex", [order_created(number)])
        assert not lost.done()
        await other.execute("COMMIT")
        (published,) = await lost

    assert await _stored(rig) == [published.event_id]
    groups = rig.publisher.committed_groups
    await _publish(rig, order_created(1))
    assert rig.publisher.committed_groups == groups + 1, "acme has rejoined the group commit"


async def test_delivery_found_by_deferred_look_up_is_sent(
    rig: Rig, wire: Wire, subscribed: Receiver
) -> None:
    async with rival(rig.url) as other:
        await other.execute(LOCK_ACME)
        wire.cut_answer = MARK
        lost = asyncio.create_task(_publish(rig, _marked()))
        await until_blocked(rig.database, "contended")
        await other.execute("COMMIT")
        (published,) = await lost

    assert published.delivery_count == 1
    await subscribed.wait_for(2)
    await until(lambda: rig.recorder.recorded == 2, "the delivery is recorded")
    assert set(subscribed.counts.values()) == {1}


async def test_lost_statement_that_still_runs_delays_no_other_tenant(rig: Rig, wire: Wire) -> None:
    """It waits for an idempotency key and holds its tenant's epoch lock meanwhile."""
    (acme,) = await rig.database.fetch("SELECT tenant_uid FROM tenants WHERE tenant_id = 'acme'")
    await rig.tenant("globex")
    await _publish(rig, order_created(0))
    await rig.publisher.publish("globex", [order_created(0)])
    async with rival(rig.url) as other:
        await take_key(other, acme["tenant_uid"], "k")
        wire.cut_sent = MARK
        lost = asyncio.create_task(_publish(rig, _marked(idempotency_key="k")))
        await wire.is_cut.wait()
        await until_blocked(rig.database, "contended")
        await rig.publisher.publish("globex", [order_created(1)])
        assert not lost.done()
        await other.execute("ROLLBACK")
        (published,) = await lost

    assert await _stored(rig) == [published.event_id]


async def test_free_tenant_of_lost_group_is_answered_while_another_is_locked(
    rig: Rig, wire: Wire
) -> None:
    await rig.tenant("globex")
    await _publish(rig, order_created(0))
    await rig.publisher.publish("globex", [order_created(0)])
    async with rival(rig.url) as other:
        await other.execute(LOCK_ACME)
        wire.cut_answer = MARK
        lost = asyncio.create_task(_publish(rig, _marked()))
        (free,) = await rig.publisher.publish("globex", [_marked()])
        assert wire.is_cut.is_set()
        assert not lost.done()
        await other.execute("COMMIT")
        (published,) = await lost

    assert set(await _stored(rig)) == {free.event_id, published.event_id}
    assert len(await _stored(rig)) == 2


async def test_calls_behind_a_deferred_look_up_are_refused_and_it_is_not(
    database_url: str, wire: Wire
) -> None:
    """The lost call may be stored, so it must not be answered as not stored."""
    limits = GroupLimits(lock_wait_s=0.4)
    urls = {"publish": wire.url}
    async with running(database_url, session_urls=urls, group_limits=limits) as rig:
        await rig.tenant()
        await _publish(rig, order_created(0))
        async with rival(rig.url) as other:
            await other.execute(LOCK_ACME)
            wire.cut_answer = MARK
            lost = asyncio.create_task(_publish(rig, _marked()))
            await until_blocked(rig.database, "contended")
            with pytest.raises(UnavailableError) as refusal:
                await _publish(rig, order_created(1))
            assert refusal.value.reason is Reason.CONCURRENT_CHANGE
            assert not lost.done()
            await other.execute("COMMIT")
            (published,) = await lost

        assert await _stored(rig) == [published.event_id]


async def test_calls_behind_a_deferred_look_up_keep_their_order(rig: Rig, wire: Wire) -> None:
    await _publish(rig, order_created(0))
    stream = object()
    async with rival(rig.url) as other:
        await other.execute(LOCK_ACME)
        wire.cut_request = MARK
        lost = await rig.publisher.submit("acme", [_marked()], stream)
        await until_blocked(rig.database, "contended")
        later = [
            await rig.publisher.submit("acme", [order_created(number)], stream)
            for number in range(1, 4)
        ]
        await other.execute("COMMIT")
        await asyncio.gather(lost, *later)

    rows = await rig.database.fetch("SELECT data FROM events ORDER BY ordinal")
    assert [row["data"] for row in rows] == [
        b'{"id":0}', MARK, *[b'{"id":%d}' % number for number in range(1, 4)]
    ]  # fmt: skip


async def test_keys_of_a_deferred_look_up_are_answered_as_decided(
    rig: Rig, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = await _publish(rig, _marked(idempotency_key="old"))
    async with rival(rig.url) as other:

        async def lose_answer() -> None:
            wire.cut_answer = MARK
            await other.execute(LOCK_ACME)

        at_lookups(monkeypatch, after=lose_answer)
        publishing = asyncio.gather(
            _publish(rig, _marked(idempotency_key="new")),
            _publish(rig, _marked(idempotency_key="new")),
            _publish(rig, _marked(idempotency_key="old")),
            _publish(rig, _marked(idempotency_key="old", subject="another")),
            return_exceptions=True,
        )
        await until_blocked(rig.database, "contended")
        await other.execute("COMMIT")
        new, follower, old, reused = await publishing

    assert isinstance(new, list)
    assert isinstance(follower, list)
    assert isinstance(old, list)
    assert (old[0].event_id, old[0].deduplicated) == (first.event_id, True)
    assert (follower[0].event_id, follower[0].deduplicated) == (new[0].event_id, True)
    assert not new[0].deduplicated
    assert isinstance(reused, AlreadyExistsError)
    assert await _stored(rig) == [first.event_id, new[0].event_id]


async def test_call_lost_again_after_a_deferred_look_up_is_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write is lost while the tenant is locked, and has stored nothing."""
    await _publish(rig, order_created(0))
    lockers: list[asyncpg.Connection[asyncpg.Record]] = []

    async def lose(_store: PublishStore, *_args: object) -> set[UUID] | None:
        assert len(lockers) < MAX_LOSSES
        lockers.append(await asyncpg.connect(rig.url))
        await lockers[-1].execute("BEGIN")
        await lockers[-1].execute(LOCK_ACME)
        raise OutcomeUnknownError("the server fell over")

    monkeypatch.setattr(PublishStore, "write", lose)
    monkeypatch.setattr(PublishStore, "write_held", lose)
    publishing = asyncio.create_task(_publish(rig, _marked()))
    for number in range(MAX_LOSSES):
        await until(lambda count=number: len(lockers) > count, "another write is lost")
        await until_blocked(rig.database, "contended")
        await lockers[-1].close()
    with pytest.raises(UnavailableError) as refusal:
        await publishing

    assert refusal.value.reason is Reason.DATABASE_UNAVAILABLE
    assert await _stored(rig) == []


async def test_statement_that_arrives_after_a_deferred_look_up_stores_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _publish(rig, order_created(0))
    late: list[PublishRows] = []
    write = PublishStore.write

    async def lose(_store: PublishStore, rows: PublishRows) -> set[UUID] | None:
        late.append(rows)
        raise OutcomeUnknownError("it lies in a buffer")

    monkeypatch.setattr(PublishStore, "write", lose)
    async with rival(rig.url) as other:
        await other.execute(LOCK_ACME)
        publishing = asyncio.create_task(_publish(rig, _marked()))
        await until_blocked(rig.database, "contended")
        await other.execute("COMMIT")
        (published,) = await publishing

    assert await write(rig.publish_store, late[0]) == set()
    assert await _stored(rig) == [published.event_id]


async def test_stopping_node_answers_a_call_that_cannot_be_looked_up_as_unknown(
    database_url: str, wire: Wire
) -> None:
    limits = GroupLimits(lock_wait_s=0.4)
    urls = {"publish": wire.url}
    async with rival(database_url) as other:
        async with running(database_url, session_urls=urls, group_limits=limits) as rig:
            await rig.tenant()
            await _publish(rig, order_created(0))
            await other.execute(LOCK_ACME)
            wire.cut_answer = MARK
            lost = asyncio.create_task(_publish(rig, _marked()))
            await until_blocked(rig.database, "contended")
        with pytest.raises(OutcomeUnknownError):
            await lost


async def test_calls_behind_a_lost_answer_of_a_locked_tenant_fail_while_it_is_looked_up(
    database_url: str, wire: Wire
) -> None:
    """The committer for locked tenants loses its answer, and the database is not reachable."""
    async with running(database_url, session_urls={"contended": wire.url}) as rig:
        await rig.tenant()
        await _publish(rig, order_created(0))
        async with rival(rig.url) as other:
            await other.execute(BUMP_ACME)
            lost = asyncio.create_task(_publish(rig, _marked()))
            await until_blocked(rig.database, "contended")
            wire.hold_answer = MARK
            await other.execute("COMMIT")
            await wire.is_held.wait()
        behind = asyncio.create_task(_publish(rig, order_created(2)))
        await asyncio.sleep(0)
        wire.close()
        with pytest.raises(UnavailableError) as refusal:
            await behind
        assert refusal.value.reason is Reason.DATABASE_UNAVAILABLE
        assert not lost.done()
        wire.is_open = True
        (published,) = await lost
        assert await _stored(rig) == [published.event_id]


async def test_calls_fail_as_unavailable_while_the_database_is_away(rig: Rig, wire: Wire) -> None:
    wire.is_open = False

    with pytest.raises(UnavailableError) as refusal:
        await _publish(rig, _marked())
    assert refusal.value.reason is Reason.DATABASE_UNAVAILABLE
    assert refusal.value.retry_after_s is not None
    assert await _stored(rig) == []

    wire.is_open = True
    (published,) = await _publish(rig, _marked())
    assert await _stored(rig) == [published.event_id]


async def test_calls_behind_a_lost_answer_fail_while_it_is_looked_up(rig: Rig, wire: Wire) -> None:
    """The lost call alone waits until the database answers."""
    await _publish(rig, order_created(0))
    wire.hold_answer = MARK
    lost = asyncio.create_task(_publish(rig, _marked()))
    await wire.is_held.wait()
    behind = asyncio.create_task(_publish(rig, order_created(2)))
    await asyncio.sleep(0)
    wire.close()

    with pytest.raises(UnavailableError):
        await behind
    assert not lost.done()
    wire.is_open = True
    (published,) = await lost
    assert await _stored(rig) == [published.event_id]


def _marked(**fields: object) -> NewEvent:
    return order_created(**({"data": MARK} | fields))  # type: ignore[arg-type]  # a test's own


async def _publish(rig: Rig, event: NewEvent) -> list[Published]:
    return await rig.publisher.publish("acme", [event])


async def _stored(rig: Rig) -> list[object]:
    """Return the ids of the marked events that are stored, in publish order."""
    rows = await rig.database.fetch(
        "SELECT event_id FROM events WHERE data = $1 ORDER BY ordinal", MARK
    )
    return [row["event_id"] for row in rows]
