"""A running node for each test of the data path, and a target for it."""

from collections.abc import AsyncIterator

import pytest

from hookline_service.store.subscriptions import Subscriptions
from tests.pipeline.rig import Receiver, Rig, order_created, running


@pytest.fixture
async def rig(database_url: str) -> AsyncIterator[Rig]:
    """A node that runs, on a database of its own whose clock can be turned."""
    async with running(database_url) as node:
        await node.make_clock_turnable()
        yield node


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A target that answers as configured."""
    async with Receiver() as target:
        yield target


@pytest.fixture
async def acme(rig: Rig) -> Rig:
    """The rig with tenant acme, its index in memory, and one subscription whose deliveries wait.

    So that their rows can be counted.
    """
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, "http://127.0.0.1:1024/", "order.*", schedule_s=[90.0])
    await rig.matcher.index("acme")
    return rig


@pytest.fixture
async def subscriptions(rig: Rig) -> Subscriptions:
    """The subscriptions as the API keeps them; tenant acme is there, and the rig has matched it."""
    await rig.tenant()
    await rig.publisher.publish("acme", [order_created(0)])
    return Subscriptions(rig.database, rig.secrets, rig.random.getrandbits)
