"""The recorder: fenced, batched, and safe against bad rows. Rules 20 to 22."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from hookline_service.domain.attempt import AttemptOutcome, AttemptRecord, Outcome, Verdict
from hookline_service.pipeline.dispatch.record import PARK_S, UNSTORABLE
from tests.pipeline.frozen import freeze, run_out
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.rival import rival, until_blocked
from tests.waiting import until


async def recorded(rig: Rig, count: int) -> None:
    await until(lambda: rig.recorder.recorded >= count, f"{count} outcomes are recorded")


def answering_with(rig: Rig, answer: Callable[[], Outcome]) -> None:
    """Attempts come to this outcome: what no receiver of ours can be made to cause."""

    async def send(*_: object) -> Outcome:
        return answer()

    rig.sender.send = send  # type: ignore[method-assign,assignment]


# ------------------------------------------------------------------------------------- the fence


async def test_a_record_of_another_version_matches_nothing(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    receiver.gate, receiver.answers = asyncio.Event(), 500
    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    await rig.database.fetch("UPDATE pending_deliveries SET version = version + 1")
    await rig.stop_reading()

    receiver.gate.set()
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "the answer is dealt with")

    assert rig.recorder.recorded == 0
    (row,) = await rig.pending()
    assert (row["version"], row["attempt_count"]) == (1, 0)
    assert await rig.attempts() == []
    lane = rig.lanes.get(row["subscription_uid"])
    assert lane is not None
    assert (lane.failures, lane.known, lane.state) == (0, {}, "DIRTY")


async def test_row_changed_by_another_transaction_is_read_again_and_sent(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    receiver.gate = asyncio.Event()
    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    await rig.database.fetch("UPDATE pending_deliveries SET version = version + 1")

    receiver.gate.set()
    await recorded(rig, 1)

    assert len(receiver.ids) == 2
    (row,) = await rig.finished()
    assert (row["state"], row["version"], row["attempt_count"]) == ("SUCCEEDED", 2, 1)


async def test_rows_that_do_not_match_do_not_block_the_others(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 3_600.0])
    receiver.gate = asyncio.Event()
    receiver.answers = lambda webhook_id: 500 if receiver.ids.index(webhook_id) % 2 else 200
    await rig.publisher.publish("acme", [order_created(n) for n in range(40)])
    await receiver.wait_for(40)
    changed = [row["delivery_id"] for row in (await rig.pending())[:10]]
    await rig.stop_reading()
    await rig.database.fetch(
        "UPDATE pending_deliveries SET version = 7 WHERE delivery_id = ANY ($1)", changed
    )

    receiver.gate.set()
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "all are dealt with")

    assert rig.recorder.recorded == 30
    untouched = [row for row in await rig.pending() if row["version"] == 7]
    assert sorted(row["delivery_id"] for row in untouched) == changed
    assert {row["attempt_count"] for row in untouched} == {0}
    assert {row["delivery_id"] for row in await rig.attempts()}.isdisjoint(changed)


async def test_response_after_the_lease_is_not_recorded_even_without_a_takeover(
    rig: Rig, receiver: Receiver
) -> None:
    """Its row among the nodes is there, its rows are as it saw them: the time alone is over."""
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 3_600.0])
    receiver.gate = asyncio.Event()
    receiver.answers = lambda webhook_id: 500 if receiver.ids.index(webhook_id) else 200
    await rig.publisher.publish("acme", [order_created(n) for n in range(2)])
    await receiver.wait_for(2)
    freeze(rig)
    await run_out(rig)

    receiver.gate.set()
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "the answers are dealt with")

    (node,) = await rig.database.fetch("SELECT node_id FROM nodes")
    assert node["node_id"] == rig.ownership.node_id
    assert rig.recorder.recorded == 0
    assert [(row["version"], row["attempt_count"]) for row in await rig.pending()] == [(0, 0)] * 2
    assert await rig.attempts() == await rig.finished() == []


# ------------------------------------------------------------------------------------- in flight


async def test_commit_of_the_record_frees_the_slot(database_url: str, receiver: Receiver) -> None:
    async with running(database_url, max_in_flight=3) as rig, rival(database_url) as other:
        tenant_uid = await rig.tenant()
        await rig.subscription(tenant_uid, receiver.url)
        await rig.publisher.publish("acme", [order_created()])
        await recorded(rig, 1)
        await other.execute("LOCK TABLE deliveries IN SHARE MODE")

        await rig.publisher.publish("acme", [order_created(n) for n in range(20)])
        await receiver.wait_for(4)
        await until_blocked(rig.database, "record")

        assert (rig.deliverer.free_slots, len(receiver.ids)) == (0, 4)
        await other.execute("ROLLBACK")
        await recorded(rig, 21)
        assert rig.deliverer.free_slots == 3
        assert receiver.in_flight_most <= 3


async def test_retry_starts_only_after_the_previous_attempt_is_recorded(
    rig: Rig, receiver: Receiver, database_url: str
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 0.0])
    receiver.answers = lambda _: 500 if len(receiver.ids) == 1 else 200
    async with rival(database_url) as other:
        await other.execute("LOCK TABLE attempts IN SHARE MODE")
        await rig.publisher.publish("acme", [order_created()])
        await until_blocked(rig.database, "record")
        rig.sweeper.sweep_soon()
        rig.timers.poke()
        assert len(receiver.ids) == 1

        await other.execute("ROLLBACK")
        await recorded(rig, 2)

    assert [row["number"] for row in await rig.attempts()] == [1, 2]


# -------------------------------------------------------------------- what a target may answer


async def test_nul_and_invalid_utf8_in_a_response_are_recorded(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 3_600.0])
    receiver.answers, receiver.body = 500, b"a\x00b\xff\xfe\xed\xa0\x80"

    await rig.publisher.publish("acme", [order_created(n) for n in range(5)])
    await recorded(rig, 5)

    assert {row["response_excerpt"] for row in await rig.attempts()} == {receiver.body}
    assert rig.recorder.recorded == 5


async def test_lone_surrogate_in_an_error_is_recorded(rig: Rig) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, "http://127.0.0.1:1024/", schedule_s=[0.0, 3_600.0])
    bad = Outcome(
        Verdict.RETRYABLE,
        AttemptRecord(
            AttemptOutcome.CONNECTION_FAILED, 1, "http://127.0.0.1:1024/", error="x \udcff y"
        ),
    )
    answering_with(rig, lambda: bad)

    await rig.publisher.publish("acme", [order_created(n) for n in range(3)])
    await recorded(rig, 3)

    assert {row["error"] for row in await rig.attempts()} == {b"x ? y"}


async def test_bad_row_is_isolated_and_the_rest_of_its_batch_recorded(
    rig: Rig, receiver: Receiver
) -> None:
    """The attempt is written without the words that the database refused: visible, and no loop."""
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 3_600.0])
    await rig.database.fetch(
        "ALTER TABLE attempts ADD CHECK (response_excerpt <> 'poison')"  # cannot be stored
    )
    receiver.gate, receiver.answers = asyncio.Event(), 500
    outcomes = iter([b"poison", *[b"harmless"] * 7])
    url = receiver.url

    def answer() -> Outcome:
        record = AttemptRecord(AttemptOutcome.HTTP_ERROR, 1, url, 500, "no", next(outcomes))
        return Outcome(Verdict.RETRYABLE, record)

    answering_with(rig, answer)
    await rig.publisher.publish("acme", [order_created(n) for n in range(8)])
    await recorded(rig, 8)

    attempts = await rig.attempts()
    assert sorted(row["response_excerpt"] for row in attempts) == [b"", *[b"harmless"] * 7]
    (plain,) = [row for row in attempts if row["response_excerpt"] == b""]
    assert plain["error"] == UNSTORABLE.encode()
    assert (plain["outcome"], plain["http_status"]) == ("HTTP_ERROR", 500)
    assert {row["attempt_count"] for row in await rig.pending()} == {1}
    lane = rig.lanes.get(uid)
    assert lane is not None
    assert (lane.unrecorded, lane.known) == (0, {})


async def test_a_gone_target_whose_response_cannot_be_stored_is_named_as_gone(
    rig: Rig, receiver: Receiver
) -> None:
    uid = await rig.subscription(await rig.tenant(), receiver.url)
    await rig.database.fetch("ALTER TABLE attempts ADD CHECK (response_excerpt <> 'poison')")
    record = AttemptRecord(AttemptOutcome.HTTP_ERROR, 1, receiver.url, 410, "gone", b"poison")
    answering_with(rig, lambda: Outcome(Verdict.GONE, record))
    await rig.publisher.publish("acme", [order_created()])
    await recorded(rig, 1)
    (row,) = await rig.database.fetch(
        "SELECT state, state_message FROM subscriptions WHERE subscription_uid = $1", uid
    )
    assert tuple(row) == ("DISABLED", "the target is gone")


async def test_row_that_cannot_be_written_is_parked_and_blocks_no_other(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.database.fetch("ALTER TABLE deliveries ADD CHECK (http_status <> 299)")
    receiver.answers = lambda _: 299 if len(receiver.ids) == 1 else 200
    (first,) = await rig.publisher.publish("acme", [order_created()])
    lane = rig.lanes.get(uid)
    await receiver.wait_for(1)  # slots are free before it is sent, too
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "it is dealt with")

    await rig.publisher.publish("acme", [order_created(n) for n in range(3)])
    await recorded(rig, 3)

    (row,) = await rig.pending()
    assert row["event_id"] == first.event_id
    assert row["due_at"].timestamp() == pytest.approx(rig.time.unix_s() + PARK_S, abs=10)
    assert (row["version"], row["attempt_count"]) == (1, 0)
    assert len(receiver.ids) == 4
    assert lane is not None
    assert (lane.known, lane.unrecorded) == ({}, 0)
    await rig.turn(PARK_S + 1)
    await recorded(rig, 4)
    assert await rig.pending() == []


async def test_batch_waits_for_a_server_in_trouble_and_is_sent_once(
    rig: Rig, receiver: Receiver
) -> None:
    """Disk full (53100) is no fault of the rows: they are written once the server has space."""
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    await rig.database.fetch(
        """CREATE FUNCTION full() RETURNS trigger LANGUAGE plpgsql AS
           $$BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END$$"""
    )
    await rig.database.fetch(
        "CREATE TRIGGER full_disk BEFORE INSERT ON deliveries FOR EACH ROW EXECUTE FUNCTION full()"
    )
    await rig.publisher.publish("acme", [order_created(n) for n in range(10)])
    await receiver.wait_for(10)
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight - 10, "all wait")

    await rig.database.fetch("DROP TRIGGER full_disk ON deliveries")
    await recorded(rig, 10)

    assert set(receiver.counts.values()) == {1}
    assert {row["state"] for row in await rig.finished()} == {"SUCCEEDED"}


# ----------------------------------------------------------------------------------- together


async def test_outcomes_of_running_requests_share_a_statement(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hookline_service.pipeline.batch_queue.GATHER_S", 3_600.0)
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    receiver.gate = asyncio.Event()
    async with Receiver() as quick:
        await rig.subscription(tenant_uid, quick.url)
        await rig.publisher.publish("acme", [order_created()])
        await quick.wait_for(1)
        await receiver.wait_for(1)
        await until(lambda: quick.in_flight == 0, "it has answered, the other one has not")
        assert rig.recorder.batches == 0

        receiver.gate.set()
        await recorded(rig, 2)

    assert rig.recorder.batches == 1


async def test_only_request_on_the_wire_is_recorded_at_once(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hookline_service.pipeline.batch_queue.GATHER_S", 3_600.0)
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)

    for count in (1, 2):
        await rig.publisher.publish("acme", [order_created()])
        await recorded(rig, count)

    assert rig.recorder.batches == 2


async def test_full_batch_is_recorded_at_once(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hookline_service.pipeline.batch_queue.GATHER_S", 3_600.0)
    monkeypatch.setattr("hookline_service.pipeline.batch_queue.ENOUGH", 3)
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    async with Receiver() as hanging:
        hanging.gate = asyncio.Event()
        await rig.subscription(tenant_uid, hanging.url)
        await rig.publisher.publish("acme", [order_created(n) for n in range(3)])
        await recorded(rig, 3)

        assert len(await rig.pending()) == 3
        hanging.gate.set()
        await recorded(rig, 6)


async def test_stop_records_queued_outcomes_at_once(
    database_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hookline_service.pipeline.batch_queue.GATHER_S", 3_600.0)
    async with Receiver() as hanging, running(database_url) as rig:
        tenant_uid = await rig.tenant()
        hanging.gate = asyncio.Event()
        await rig.subscription(tenant_uid, receiver.url)
        await rig.subscription(tenant_uid, hanging.url)
        await rig.publisher.publish("acme", [order_created()])
        await receiver.wait_for(1)
        await hanging.wait_for(1)
        await until(lambda: receiver.in_flight == 0, "one has answered")

        await rig.recorder.stop()

        assert rig.recorder.recorded == 1
        hanging.gate.set()


async def test_outcome_of_an_ordering_key_is_recorded_at_once(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hookline_service.pipeline.batch_queue.GATHER_S", 3_600.0)
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, ordered=True)
    async with Receiver() as hanging:
        hanging.gate = asyncio.Event()
        await rig.subscription(tenant_uid, hanging.url)
        events = [order_created(n, ordering_key="k") for n in range(3)]
        await rig.publisher.publish("acme", events)
        await recorded(rig, 3)

        assert len(receiver.ids) == 3
        hanging.gate.set()
        await recorded(rig, 6)
