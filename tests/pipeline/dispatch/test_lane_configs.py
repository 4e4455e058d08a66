"""Configurations of lanes: secrets that expire, or cannot be decrypted; unusable targets."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from standardwebhooks import Webhook
from structlog.testing import capture_logs

from hookline_service.domain.subscription import SignatureScheme
from hookline_service.pipeline.dispatch.lane_configs import FAULT_LOG_PAUSE_S
from hookline_service.pipeline.dispatch.lane_views import LaneView
from hookline_service.pipeline.dispatch.lanes import FAULT_PAUSE_S
from hookline_service.store.secrets import SecretPlace
from hookline_service.store.subscriptions import NewSecret, Subscriptions
from hookline_service.targets.http.sender import HttpTargetSender
from tests.pipeline.rig import SECRET, Receiver, Rig, order_created
from tests.waiting import until

NEW_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


async def rotate(rig: Rig, tenant_uid: UUID, uid: UUID, overlap_s: float) -> None:
    """Add a second secret; the first one also signs during the overlap."""
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


def view_of(rig: Rig, uid: UUID) -> LaneView:
    lane = rig.lanes.get(uid)
    assert lane is not None
    (view,) = [view for view in rig.lanes.top(100) if view.subscription == lane.name]
    return view


async def send_one(rig: Rig) -> None:
    count = rig.recorder.recorded
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded > count, "it is recorded")


async def test_endpoints_carry_their_tenant_for_name_lookups(rig: Rig) -> None:
    uid = await rig.subscription(await rig.tenant(), "http://example.test/")
    prepared = await rig.configs.prepare(uid)
    assert prepared is not None
    sender = prepared[1]
    assert isinstance(sender, HttpTargetSender)
    assert sender.target.endpoints[0].tenant_id == "acme"


async def test_both_secrets_sign_during_the_overlap(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await send_one(rig)
    assert verifies(receiver, SECRET)
    lane = rig.lanes.get(uid)
    assert lane is not None

    await rotate(rig, tenant_uid, uid, overlap_s=100.0)
    await until(lambda: lane.secret_expiry is not None, "the rotation takes effect")
    await send_one(rig)
    assert verifies(receiver, SECRET)
    assert verifies(receiver, NEW_SECRET)

    await rig.turn(101)
    await send_one(rig)
    assert not verifies(receiver, SECRET)
    assert verifies(receiver, NEW_SECRET)


async def test_one_timer_waits_for_a_secret_expiry(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await send_one(rig)
    await rotate(rig, tenant_uid, uid, overlap_s=86_400.0)

    for _ in range(5):
        await rig.configs.reconfigure([uid])

    assert len(rig.timers) == 1


async def test_deliveries_wait_while_their_secret_is_unreadable(
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
    assert (view_of(rig, uid).state, rig.lanes.counts().held) == ("HELD", 1)
    sealed = rig.box.seal(SECRET.encode(), SecretPlace(tenant_uid, uid, 1))
    await rig.database.fetch(
        "UPDATE signing_keys SET sealed_secret = $2 WHERE subscription_uid = $1", uid, sealed
    )
    await rig.turn(FAULT_PAUSE_S + 1)
    await until(lambda: rig.recorder.recorded == 2, "it is sent once its secret can be decrypted")
    assert view_of(rig, uid).state == "READY"


async def test_unreadable_secrets_are_logged_once_a_minute_with_the_subscription(
    rig: Rig,
    receiver: Receiver,
) -> None:
    tenant_uid = await rig.tenant()
    uids = [await rig.subscription(tenant_uid, receiver.url) for _ in range(3)]
    await rig.database.fetch("UPDATE signing_keys SET sealed_secret = $1", b"\0" * 64)

    with capture_logs() as logs:
        await rig.publisher.publish("acme", [order_created()])
        await until(lambda: rig.lanes.counts().held == 3, "all three are held")
        for _ in range(3):
            await rig.sweeper.sweep()
            await rig.refiller.refill()
        logged = [entry for entry in logs if entry["event"] == "secret_unreadable"]
        assert len(logged) == 1
        await rig.turn(FAULT_LOG_PAUSE_S + 1)
        await rig.configs.reconfigure(uids)
        assert [entry for entry in logs if entry["event"] == "secret_unreadable"] == logged

    names = {f"tenants/acme/subscriptions/s-{uid.hex[-8:]}" for uid in uids}
    assert {view_of(rig, uid).subscription for uid in uids} == names
    assert logged[0]["subscription"] in names


async def test_a_rotation_resumes_a_lane_with_an_unreadable_secret(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.database.fetch("UPDATE signing_keys SET sealed_secret = $1", b"\0" * 64)
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.lanes.counts().held == 1, "it is held")

    secret = NewSecret(SignatureScheme.HMAC_SHA256, NEW_SECRET)
    subscriptions = Subscriptions(rig.database, rig.secrets)
    await subscriptions.rotate("acme", f"s-{uid.hex[-8:]}", secret, overlap_s=0)
    rig.changes.poke()
    await until(lambda: rig.recorder.recorded == 1, "it is sent")
    assert verifies(receiver, NEW_SECRET)


async def test_an_unusable_target_waits_and_blocks_no_other_lane(
    rig: Rig, receiver: Receiver
) -> None:
    """A row that an older version accepted and this one rejects."""
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
    await rig.turn(FAULT_PAUSE_S + 1)
    await until(lambda: rig.recorder.recorded == 2, "it is sent once its target is valid")
