"""What lanes know of their subscriptions: secrets that end in time, or cannot be opened."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from standardwebhooks import Webhook

from service.store.secrets import SecretPlace
from tests.pipeline.rig import SECRET, Receiver, Rig, order_created
from tests.waiting import until

if TYPE_CHECKING:
    from uuid import UUID

NEW_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


async def rotate(rig: Rig, tenant_uid: UUID, uid: UUID, overlap_s: float) -> None:
    """A second secret; the first one signs on for the overlap."""
    sealed = rig.box.seal(NEW_SECRET.encode(), SecretPlace(tenant_uid, uid, 2))
    await rig.database.fetch(
        """WITH old AS (UPDATE signing_keys SET expire_time = hookline_now()
                            + make_interval(secs => $2) WHERE subscription_uid = $1),
                new AS (INSERT INTO signing_keys (subscription_uid, version, scheme, sealed_secret)
                        VALUES ($1, 2, 'HMAC_SHA256', $3)),
                s AS (UPDATE subscriptions SET version = version + 1
                      WHERE subscription_uid = $1 RETURNING bucket)
           INSERT INTO change_log (kind, bucket, subscription_uid)
           SELECT 'SUBSCRIPTION', bucket, $1 FROM s""",
        uid,
        overlap_s,
        sealed,
    )
    rig.changes.poke()


def verifies(receiver: Receiver, secret: str) -> bool:
    """Whether the last request carries a signature of this secret."""
    headers, body = receiver.requests[-1]
    sent_at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    signature = Webhook(secret).sign(headers["webhook-id"], sent_at, body.decode())
    return signature in headers["webhook-signature"].split()


async def send_one(rig: Rig) -> None:
    count = rig.recorder.recorded
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded > count, "it is recorded")


async def test_both_secrets_sign_until_the_overlap_is_over(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await send_one(rig)
    assert verifies(receiver, SECRET)
    lane = rig.lanes.get(uid)
    assert lane is not None

    await rotate(rig, tenant_uid, uid, overlap_s=100.0)
    await until(lambda: lane.watched_expiry is not None, "the rotation is heard of")
    await send_one(rig)
    assert verifies(receiver, SECRET)
    assert verifies(receiver, NEW_SECRET)

    await rig.turn(101)
    await send_one(rig)
    assert not verifies(receiver, SECRET)
    assert verifies(receiver, NEW_SECRET)


async def test_however_often_a_subscription_is_read_one_timer_waits_for_its_secret(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await send_one(rig)
    await rotate(rig, tenant_uid, uid, overlap_s=86_400.0)

    for _ in range(5):
        await rig.configs.reconfigure([uid])

    assert len(rig.timers) == 1


async def test_a_secret_that_cannot_be_opened_is_our_fault_and_its_deliveries_wait(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, "sealed.*")
    await rig.subscription(tenant_uid, receiver.url, "open.*")
    await rig.database.fetch(
        "UPDATE signing_keys SET sealed_secret = $2 WHERE subscription_uid = $1", uid, b"\0"
    )

    await rig.publisher.publish("acme", [order_created(type="sealed.x")])
    await rig.publisher.publish("acme", [order_created(type="open.x")])
    await until(lambda: rig.recorder.recorded == 1, "the other one is sent")

    (row,) = await rig.pending()
    assert (row["subscription_uid"], row["attempt_count"]) == (uid, 0)
    assert len(receiver.ids) == 1
    sealed = rig.box.seal(SECRET.encode(), SecretPlace(tenant_uid, uid, 1))
    await rig.database.fetch(
        "UPDATE signing_keys SET sealed_secret = $2 WHERE subscription_uid = $1", uid, sealed
    )
    await until(lambda: rig.recorder.recorded == 2, "it goes out once it can be opened")


async def test_a_target_that_can_no_longer_be_made_ready_waits_and_holds_up_no_other(
    rig: Rig, receiver: Receiver
) -> None:
    """A row that an older version let in, and today's grammar does not."""
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, "old.*")
    await rig.subscription(tenant_uid, receiver.url, "new.*")
    await rig.database.fetch(
        "UPDATE subscriptions SET url = $2 WHERE subscription_uid = $1", uid, "http://a b/"
    )

    await rig.publisher.publish("acme", [order_created(type="old.x"), order_created(type="new.x")])
    await until(lambda: rig.recorder.recorded == 1, "the other one is sent")

    (row,) = await rig.pending()
    assert (row["subscription_uid"], row["attempt_count"]) == (uid, 0)
    await rig.database.fetch(
        "UPDATE subscriptions SET url = $2 WHERE subscription_uid = $1", uid, receiver.url
    )
    await until(lambda: rig.recorder.recorded == 2, "it goes out once its target is right")
