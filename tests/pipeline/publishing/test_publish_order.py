"""Calls of one stream are stored in the order of submission, also after failures and retries.

Rule 5 of the data path. A stream does not wait for its answers, so the order is the queue's to
keep: where a call has to be queued again, those of its stream that come after it must not pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from hookline_service.domain.errors import AlreadyExistsError, InvalidArgumentError
from hookline_service.pipeline.publishing.commit import GroupLimits
from hookline_service.pipeline.publishing.group import Published
from tests.pipeline.rig import Rig, order_created, running
from tests.pipeline.rival import BUMP, STALL, rival, until_blocked


async def test_call_that_waits_for_its_index_is_not_overtaken(rig: Rig) -> None:
    await rig.tenant("acme")
    await rig.tenant("globex")

    stream = object()
    calls = [
        await rig.publisher.submit(tenant, [order_created(number)], stream)
        for number, tenant in enumerate(("acme", "globex", "acme"))
    ]
    await asyncio.gather(*calls)

    assert await _stored(rig, "acme") == [0, 2]
    assert await _stored(rig, "globex") == [1]


async def test_follower_with_further_events_is_not_overtaken(rig: Rig) -> None:
    """The follower shares a key with a call of the group, so that it joins the next group."""
    await rig.tenant()
    await _warm(rig)
    stream = object()

    async with _held(rig) as first:
        keyed = order_created(1, idempotency_key="k")
        leader = await rig.publisher.submit("acme", [keyed])
        follower = await rig.publisher.submit("acme", [keyed, order_created(2)], stream)
        later = [
            await rig.publisher.submit("acme", [order_created(number)], stream) for number in (3, 4)
        ]
        outside = await rig.publisher.submit("acme", [order_created(5)])
    await asyncio.gather(first, leader, follower, *later, outside)

    stored = await _stored(rig)
    assert sorted(stored) == [0, 1, 2, 3, 4, 5, 99]
    assert [number for number in stored if number in {2, 3, 4}] == [2, 3, 4]
    assert stored.index(5) < stored.index(2), "a call of no stream does not wait"
    assert [result.deduplicated for result in await follower] == [True, False]


async def test_follower_of_a_refused_leader_is_not_overtaken(rig: Rig) -> None:
    await rig.tenant()
    await _warm(rig)
    await rig.publisher.publish("acme", [order_created(1, idempotency_key="taken")])
    stream = object()

    async with _held(rig) as first:
        keyed = order_created(2, idempotency_key="k")
        leader = await rig.publisher.submit(
            "acme", [order_created(7, idempotency_key="taken"), keyed]
        )
        follower = await rig.publisher.submit("acme", [keyed], stream)
        later = await rig.publisher.submit("acme", [order_created(3)], stream)
    await asyncio.gather(first, follower, later)

    with pytest.raises(AlreadyExistsError):
        await leader
    assert await _stored(rig) == [0, 1, 99, 2, 3]


async def test_followers_are_stored_before_later_calls(rig: Rig) -> None:
    """Otherwise a call that arrives during the group's commit would be stored first."""
    await rig.tenant()
    await _warm(rig)
    stream = object()

    async with rival(rig.url) as other:
        await other.execute(STALL)
        keyed = order_created(1, idempotency_key="k")
        early = [
            await rig.publisher.submit("acme", [keyed]),
            await rig.publisher.submit("acme", [keyed, order_created(2)], stream),
        ]
        await until_blocked(rig.database)
        late = await rig.publisher.submit("acme", [order_created(3)], stream)
        await other.execute("COMMIT")
        await asyncio.gather(*early, late)

    assert await _stored(rig) == [0, 1, 2, 3]


async def test_calls_matched_again_keep_their_order(database_url: str) -> None:
    """These are the calls of the group, their followers, and the calls queued behind them."""
    async with running(database_url, group_limits=GroupLimits(max_events=4)) as rig:
        tenant_uid = await rig.tenant()
        await _warm(rig)
        stream = object()

        async with rival(rig.url) as other:
            await other.fetchval(BUMP, tenant_uid)
            keyed = order_created(1, idempotency_key="k")
            calls = [
                await rig.publisher.submit("acme", events, stream)
                for events in (
                    [keyed],
                    [keyed, order_created(2)],
                    [order_created(3)],
                    [order_created(4)],
                    [order_created(5)],
                    [order_created(6)],
                )
            ]
            await until_blocked(rig.database, "contended")
            calls.append(await rig.publisher.submit("acme", [order_created(7)], stream))
            await other.execute("COMMIT")
            await asyncio.gather(*calls)

        assert await _stored(rig) == [0, 1, 2, 3, 4, 5, 6, 7]


async def test_split_group_keeps_the_order_of_a_changed_tenant(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first half is matched again; the second has a newer index and could be stored at once."""
    monkeypatch.setattr(rig.matcher._indexes, "_max_bytes", 1)  # noqa: SLF001 - each reload is whole
    tenant_uid = await rig.tenant("acme")
    await rig.tenant("globex")
    await rig.publisher.publish("acme", [order_created(0)])
    stream = object()

    async with rival(rig.url) as other:
        await other.execute(STALL)
        first = await rig.publisher.submit("acme", [order_created(99)])
        await until_blocked(rig.database)
        calls = [await rig.publisher.submit("acme", [order_created(1)], stream)]
        poison = await rig.publisher.submit("acme", [order_created(8, subject="\x00")], stream)
        await rig.matcher.reload("globex")  # evicts acme
        await other.fetchval(BUMP, tenant_uid)
        await other.execute("COMMIT")
        calls.append(await rig.publisher.submit("acme", [order_created(2)], stream))
        await asyncio.gather(first, *calls)

    with pytest.raises(InvalidArgumentError):
        await poison
    assert [number for number in await _stored(rig) if number in {1, 2}] == [1, 2]


async def _warm(rig: Rig) -> None:
    await rig.publisher.publish("acme", [order_created(0)])


@asynccontextmanager
async def _held(rig: Rig) -> AsyncIterator[asyncio.Future[list[Published]]]:
    """Hold a call (99) in its commit, so that submitted calls queue behind it."""
    async with rival(rig.url) as other:
        await other.execute(STALL)
        first = await rig.publisher.submit("acme", [order_created(99)])
        await until_blocked(rig.database)
        yield first
        await other.execute("COMMIT")


async def _stored(rig: Rig, tenant_id: str = "acme") -> list[int]:
    """Return the numbers of a tenant's events, in publish order."""
    rows = await rig.database.fetch(
        """SELECT data FROM events JOIN tenants USING (tenant_uid)
           WHERE tenant_id = $1 ORDER BY ordinal""",
        tenant_id,
    )
    return [orjson.loads(row["data"])["id"] for row in rows]
