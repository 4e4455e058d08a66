"""Nodes that share one database and receive notifications of one another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

from hookline_service.domain.ids import BUCKET_COUNT, bucket_of
from tests.pipeline.rig import Rig, running
from tests.waiting import until


def uid_of(owner: Rig) -> UUID:
    """The uid of a subscription to be, in one of a node's buckets."""
    while bucket_of(uid := owner.new_uid()) not in owner.ownership.buckets:
        pass
    return uid


async def shared(*rigs: Rig) -> None:
    """Wait until each of the nodes has its fair share, and has surveyed the others."""
    most = -(-BUCKET_COUNT // len(rigs))

    def is_shared() -> bool:
        owned = [rig.ownership.buckets for rig in rigs]
        return (
            sum(len(buckets) for buckets in owned) == BUCKET_COUNT
            and all(len(buckets) <= most for buckets in owned)
            and all(
                one.ownership.owner_of(bucket) == other.ownership.node_id
                for one in rigs
                for other in rigs
                for bucket in other.ownership.buckets
            )
        )

    await until(is_shared, "the buckets are shared")


@asynccontextmanager
async def pair(url: str, **options: object) -> AsyncIterator[tuple[Rig, Rig]]:
    """Two nodes that have word of one another, and half of the buckets each.

    Their leases are long: what they do soon, they do on a notification.
    """
    options = {"has_word": True, "lease_s": 300.0} | options
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(running(url, seed=1, **options))
        two = await stack.enter_async_context(running(url, seed=2, **options))
        await shared(one, two)
        yield one, two
