"""The quota of pending deliveries: a publish beyond it is refused until the backlog shrinks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hookline_service.domain.errors import Reason, ResourceExhaustedError
from hookline_service.domain.limits import Limits
from tests.pipeline.rig import Rig, order_created, running

NOWHERE = "http://127.0.0.1:1024/"


@pytest.fixture
async def rig(database_url: str) -> AsyncIterator[Rig]:
    """Return a node with a quota of ten pending deliveries; those of `acme` stay pending."""
    async with running(database_url, limits=Limits(max_pending_per_tenant=10)) as rig:
        tenant_uid = await rig.tenant()
        await rig.subscription(
            tenant_uid, NOWHERE, "order.*", state="PAUSED", state_reason="OPERATOR"
        )
        yield rig


async def publish(rig: Rig, count: int, tenant: str = "acme") -> None:
    await rig.publisher.publish(tenant, [order_created(number) for number in range(count)])


async def pending(rig: Rig) -> int:
    (row,) = await rig.database.fetch("SELECT count(*) AS count FROM pending_deliveries")
    count: int = row["count"]
    return count


async def test_publish_beyond_the_quota_is_refused_before_the_commit(rig: Rig) -> None:
    await publish(rig, 6)
    await rig.quota.look()
    await publish(rig, 4)
    with pytest.raises(ResourceExhaustedError) as caught:
        await publish(rig, 1)
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert caught.value.retry_after_s
    assert caught.value.metadata == {
        "subject": "tenants/acme",
        "limit": "HOOKLINE_MAX_PENDING_PER_TENANT",
        "maximum": "10",
    }
    assert await pending(rig) == 10


async def test_other_tenants_and_events_without_subscribers_are_accepted(rig: Rig) -> None:
    await publish(rig, 10)
    await rig.quota.look()
    other = await rig.tenant("other")
    await rig.subscription(other, NOWHERE, state="PAUSED", state_reason="OPERATOR")
    await publish(rig, 9, "other")
    unwanted = replace(order_created(0), type="cart.left")
    assert (await rig.publisher.publish("acme", [unwanted]))[0].delivery_count == 0
    assert await pending(rig) == 19


async def test_publish_is_accepted_again_below_the_quota(rig: Rig) -> None:
    await publish(rig, 10)
    await rig.quota.look()
    with pytest.raises(ResourceExhaustedError):
        await publish(rig, 1)
    await rig.database.fetch(
        """DELETE FROM pending_deliveries WHERE delivery_id IN (
               SELECT delivery_id FROM pending_deliveries LIMIT 3)"""
    )
    await rig.quota.look()
    await publish(rig, 3)
    with pytest.raises(ResourceExhaustedError):
        await publish(rig, 1)


async def test_tenant_below_half_is_not_counted_until_the_next_estimate(rig: Rig) -> None:
    """The documented overshoot ends with the next estimate."""
    await publish(rig, 4)
    await rig.quota.look()
    await publish(rig, 12)
    await rig.quota.look()
    with pytest.raises(ResourceExhaustedError):
        await publish(rig, 1)
    assert await pending(rig) == 16
