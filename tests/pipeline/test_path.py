"""The whole path in one process: published, stored, sent, recorded."""

from tests.pipeline.rig import Receiver, Rig, order_created
from tests.waiting import until


async def test_an_event_reaches_its_target_and_history(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)

    (published,) = await rig.publisher.publish("acme", [order_created()])

    assert (published.deduplicated, published.delivery_count) == (False, 1)
    await receiver.wait_for(1)
    await until(lambda: rig.recorder.recorded == 1, "the outcome is recorded")
    assert await rig.pending() == []
    (row,) = await rig.finished()
    assert (row["state"], row["attempt_count"], row["http_status"]) == ("SUCCEEDED", 1, 200)
    assert row["event_id"] == published.event_id
    headers, body = receiver.requests[0]
    assert b'"data":{"id":1}' in body
    assert headers["webhook-signature"].startswith("v1,")


async def test_500_500_200_is_one_delivery_of_three_attempts(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 30.0, 300.0])
    answers = iter([500, 500, 200])
    receiver.answers = lambda _: next(answers)

    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    await until(lambda: rig.recorder.recorded == 1, "the first failure is recorded")
    await rig.turn(31)
    await receiver.wait_for(2)
    await until(lambda: rig.recorder.recorded == 2, "the second failure is recorded")
    await rig.turn(301)
    await receiver.wait_for(3)
    await until(lambda: rig.recorder.recorded == 3, "the success is recorded")

    (row,) = await rig.finished()
    assert (row["state"], row["attempt_count"]) == ("SUCCEEDED", 3)
    attempts = await rig.attempts()
    assert [(a["number"], a["http_status"], a["outcome"]) for a in attempts] == [
        (1, 500, "HTTP_ERROR"),
        (2, 500, "HTTP_ERROR"),
        (3, 200, "ACCEPTED"),
    ]
    assert len(set(receiver.ids)) == 1
