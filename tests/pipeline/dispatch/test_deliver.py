"""The deliverer: limits in flight, internal errors, bursts and slots. Rules 16, 21."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from hookline_service.domain.attempt import Outcome, internal_error
from hookline_service.domain.ids import format_type_id
from hookline_service.pipeline.dispatch.deliver import ITERATIONS_BETWEEN_BURSTS, REQUESTS_PER_BURST
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.waiting import until


def faulty(rig: Rig, is_faulty: Callable[[], bool]) -> None:
    """While it says so, every attempt ends in a fault of our own, before anything is sent."""
    send = rig.sender.send

    async def broken(*args: object) -> Outcome:
        if is_faulty():
            return internal_error("no descriptors")
        return await send(*args)  # type: ignore[arg-type]  # as it was called

    rig.sender.send = broken  # type: ignore[method-assign,assignment]


async def test_each_event_of_a_batch_is_delivered_once(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)

    published = await rig.publisher.publish("acme", [order_created(n) for n in range(500)])
    await until(lambda: rig.recorder.recorded == 500, "all are recorded")

    assert receiver.counts == {format_type_id("evt", one.event_id): 1 for one in published}
    assert rig.recorder.batches < 500


async def test_max_in_flight_of_a_subscription_is_kept(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, max_in_flight=5)
    receiver.gate = asyncio.Event()

    await rig.publisher.publish("acme", [order_created(n) for n in range(100)])
    await receiver.wait_for(5)
    lane = rig.lanes.get(uid)
    assert lane is not None
    await until(lambda: len(lane.queue) == 95, "the others wait")
    receiver.gate.set()
    await until(lambda: rig.recorder.recorded == 100, "all are recorded")

    assert receiver.in_flight_most == 5


async def test_max_in_flight_of_the_node_is_kept(database_url: str, receiver: Receiver) -> None:
    async with running(database_url, max_in_flight=4) as rig:
        tenant_uid = await rig.tenant()
        for _ in range(2):
            await rig.subscription(tenant_uid, receiver.url)
        await rig.publisher.publish("acme", [order_created()])
        await until(lambda: rig.recorder.recorded == 2, "both targets have answered")
        receiver.gate = asyncio.Event()

        await rig.publisher.publish("acme", [order_created(n) for n in range(100)])
        await receiver.wait_for(6)
        receiver.gate.set()
        await until(lambda: rig.recorder.recorded == 202, "all are recorded")

        assert receiver.in_flight_most == 4
        assert rig.deliverer.free_slots == 4


async def test_hanging_target_delays_no_other_lane(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    async with Receiver() as hanging:
        hanging.gate = asyncio.Event()
        await rig.subscription(tenant_uid, hanging.url)
        await rig.subscription(tenant_uid, receiver.url)

        await rig.publisher.publish("acme", [order_created(n) for n in range(200)])
        await receiver.wait_for(200)
        await hanging.wait_for(64)

        assert len(hanging.ids) == 64
        hanging.gate.set()
        await until(lambda: rig.recorder.recorded == 400, "the other one too in the end")


async def test_rate_limit_is_kept_over_time(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, max_per_second=0.1)
    await rig.publisher.publish("acme", [order_created(n) for n in range(5)])

    for count in range(1, 5):
        await until(lambda n=count: rig.recorder.recorded == n, f"{count} are sent")
        await rig.turn(9)
        assert len(receiver.ids) == count
        await rig.turn(1.1)
    await until(lambda: rig.recorder.recorded == 5, "one every ten seconds")


async def test_internal_error_spends_no_attempt_and_stores_no_row(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0])
    faults = 0

    def is_faulty() -> bool:
        nonlocal faults
        faults += 1
        return faults <= 30

    faulty(rig, is_faulty)
    await rig.publisher.publish("acme", [order_created(n) for n in range(10)])
    for count in (10, 20, 30):
        await until(lambda n=count: faults >= n, "all were tried once more")
        (version, attempts), *rest = {
            (r["version"], r["attempt_count"]) for r in await rig.pending()
        }
        assert (version, attempts, rest) == (0, 0, [])
        await rig.turn(1.1)

    await until(lambda: rig.recorder.recorded == 10, "they are sent once the fault is over")
    assert await rig.attempts() == []
    assert {row["attempt_count"] for row in await rig.finished()} == {1}
    lane = rig.lanes.get(uid)
    assert lane is not None
    assert (lane.failures, lane.failing_since_us, lane.is_circuit_open) == (0, None, False)


async def test_exception_in_the_sender_is_an_internal_error(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0])
    broken = True

    def breaks() -> bool:
        if broken:
            raise ZeroDivisionError
        return False

    faulty(rig, breaks)
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: len(rig.timers) == 1, "it waits a second")
    assert [row["attempt_count"] for row in await rig.pending()] == [0]

    broken = False
    await rig.turn(1.1)
    await until(lambda: rig.recorder.recorded == 1, "the worker has survived")


async def test_delivery_held_by_the_circuit_breaker_spends_no_attempt(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, *[7_200.0] * 9])
    receiver.answers = 500
    await rig.publisher.publish("acme", [order_created(n) for n in range(10)])
    await until(lambda: rig.recorder.recorded == 10, "ten failures open the circuit")
    lane = rig.lanes.get(uid)
    assert lane is not None
    assert rig.lanes.counts().open == 1

    await rig.publisher.publish("acme", [order_created(n) for n in range(50)])
    await rig.turn(4)
    assert len(receiver.ids) == 10
    waiting = [row["attempt_count"] for row in await rig.pending()]
    assert sorted(waiting) == [0] * 50 + [1] * 10

    receiver.answers = 200
    await rig.turn(1.1)
    await until(lambda: rig.recorder.recorded == 60, "success closes the circuit")
    assert not lane.is_circuit_open
    assert {row["attempt_count"] for row in await rig.finished()} == {1}


async def test_open_circuit_sends_one_probe_at_a_time(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, *[7_200.0] * 9])
    receiver.answers = 500
    await rig.publisher.publish("acme", [order_created(n) for n in range(200)])
    await receiver.wait_for(10)
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "the first wave is over")
    before = len(receiver.ids)
    # A limit of 64, and one more for each failure that was recorded before the tenth.
    assert before <= 64 + 9
    receiver.in_flight_most = 0

    for probes, backoff_s in enumerate((5, 10, 20), start=1):
        await rig.turn(backoff_s + 0.1)
        await until(lambda n=probes: len(receiver.ids) == before + n, "one probe goes")
        await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "and is recorded")
        assert len(receiver.ids) == before + probes
    assert receiver.in_flight_most == 1


async def test_paused_deliverer_finishes_running_attempts_and_takes_no_job(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, max_in_flight=2)
    receiver.gate = asyncio.Event()
    await rig.publisher.publish("acme", [order_created(n) for n in range(10)])
    await receiver.wait_for(2)

    rig.deliverer.pause()
    receiver.gate.set()
    await rig.deliverer.stop()
    await until(lambda: rig.recorder.recorded == 2, "what was on the wire is recorded")

    assert len(receiver.ids) == 2
    assert len(await rig.pending()) == 8


async def test_event_loop_serves_others_between_bursts(rig: Rig, receiver: Receiver) -> None:
    """A call is taken out of gRPC's queue in four turns; hundreds of requests in each kept all."""
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    receiver.gate = asyncio.Event()
    begun_in_turn: list[int] = []
    turn, send = 0, rig.sender.send

    async def counting(*args: object) -> Outcome:
        begun_in_turn.append(turn)
        return await send(*args)  # type: ignore[arg-type]  # as it was called

    def count() -> None:
        nonlocal turn
        turn += 1
        turning = loop.call_soon(count)
        stop.append(turning.cancel)

    rig.sender.send = counting  # type: ignore[method-assign,assignment]
    loop, stop = asyncio.get_running_loop(), deque[Callable[[], None]](maxlen=1)
    count()
    await rig.publisher.publish("acme", [order_created(n) for n in range(500)])
    await receiver.wait_for(64)
    receiver.gate.set()  # so that 64 answers come at about the same time
    await until(lambda: rig.recorder.recorded == 500, "all are recorded")
    stop.pop()()

    assert len(begun_in_turn) == 500
    two_bursts = 2 * REQUESTS_PER_BURST
    for earlier, later in zip(begun_in_turn, begun_in_turn[two_bursts:], strict=False):
        assert later - earlier >= ITERATIONS_BETWEEN_BURSTS


async def test_freed_slot_is_used_while_all_other_workers_hang(
    database_url: str, receiver: Receiver
) -> None:
    """Of ten slots eight are one tenant's at most; its ninth delivery follows the first record."""
    async with running(database_url, max_in_flight=10) as rig, Receiver() as hanging:
        big, small = await rig.tenant("acme"), await rig.tenant("globex")
        await rig.subscription(big, receiver.url)
        await rig.subscription(small, hanging.url)
        await rig.publisher.publish("acme", [order_created()])
        await until(lambda: rig.recorder.recorded == 1, "the target has answered")
        receiver.gate, hanging.gate = asyncio.Event(), asyncio.Event()
        await rig.publisher.publish("acme", [order_created(n) for n in range(20)])
        await receiver.wait_for(9)
        await rig.publisher.publish("globex", [order_created()])
        await hanging.wait_for(1)
        assert len(receiver.ids) == 9

        receiver.gate.set()
        await receiver.wait_for(21)

        hanging.gate.set()
        await until(lambda: rig.recorder.recorded == 22, "all are recorded")
