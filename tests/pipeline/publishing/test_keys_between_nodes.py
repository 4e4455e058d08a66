"""Idempotency keys on several nodes and over time: concurrent use, expiry and sweep."""

import asyncio

import pytest

from hookline_service.domain.errors import AlreadyExistsError, Reason, UnavailableError
from hookline_service.pipeline.publishing.group import Published, fingerprint_of
from tests.pipeline.keys import at_lookups, check_counts, keyed, publish
from tests.pipeline.rig import KEY_WINDOW_S, Rig, order_created, running
from tests.pipeline.rival import rival, until_blocked

# ------------------------------------------------------------------------------------ two nodes


async def test_fifty_calls_with_one_key_on_two_nodes_store_one_event(acme: Rig) -> None:
    async with running(acme.url, seed=2) as other:
        await other.matcher.index("acme")
        results = await asyncio.gather(
            *(publish(node, keyed()) for _ in range(25) for node in (acme, other))
        )

    assert len({result[0].event_id for result in results}) == 1
    assert [result[0].deduplicated for result in results].count(False) == 1
    await check_counts(acme, events=1, keys=1)


async def test_publish_waits_for_a_key_that_another_node_is_storing(acme: Rig) -> None:
    async with rival(acme.url) as other:
        (tenant,) = await acme.database.fetch("SELECT tenant_uid FROM tenants")
        event_id = acme.new_uid()
        await other.execute(
            """INSERT INTO idempotency_keys (tenant_uid, key, event_id, fingerprint,
                                             delivery_count, expires_at)
               VALUES ($1, 'k', $2, $3, 7, now() + interval '1 hour')""",
            tenant["tenant_uid"],
            event_id,
            fingerprint_of(keyed(), "acme"),
        )
        publishing = asyncio.create_task(publish(acme, keyed()))
        await until_blocked(acme.database)
        await other.execute("COMMIT")
        assert await publishing == [Published(event_id, True, 7)]
    await check_counts(acme, events=0, keys=1)


async def test_group_locks_its_keys_in_ascending_order(acme: Rig) -> None:
    """Another order would deadlock with other nodes. A rival transaction holds the lowest key."""
    take = """INSERT INTO idempotency_keys (tenant_uid, key, event_id, fingerprint,
                                            delivery_count, expires_at)
              SELECT tenant_uid, $1, tenant_uid, '', 0, now() + interval '1 hour' FROM tenants"""
    async with rival(acme.url) as other:
        await other.execute("SET LOCAL lock_timeout = '300ms'")
        await other.execute(take, "k00")
        publishing = asyncio.create_task(publish(acme, keyed("k02"), keyed("k01"), keyed("k00")))
        await until_blocked(acme.database)
        await other.execute(take, "k01")
        await other.execute(take, "k02")
        await other.execute("ROLLBACK")
        results = await publishing

    assert [result.deduplicated for result in results] == [False, False, False]
    await check_counts(acme, events=3, keys=3)


# ----------------------------------------------------------------------------------- expiration


async def test_expired_key_can_be_used_again_before_and_after_the_sweep(acme: Rig) -> None:
    (first,) = await publish(acme, keyed())
    await acme.turn(KEY_WINDOW_S - 60)
    (repeated,) = await publish(acme, keyed())
    await acme.turn(61)

    (anew,) = await publish(acme, keyed(number=2))

    assert repeated.event_id == first.event_id, "the window does not slide, and has not ended"
    assert not anew.deduplicated
    (again,) = await publish(acme, keyed(number=2))
    assert again == anew._replace(deduplicated=True)
    await check_counts(acme, events=2, keys=1)


async def test_expired_key_in_a_call_with_a_live_key_can_be_used_again(acme: Rig) -> None:
    await publish(acme, keyed("old"))
    await acme.turn(KEY_WINDOW_S + 1)
    (live,) = await publish(acme, keyed("live"))

    anew, again = await publish(acme, keyed("old"), keyed("live"))

    assert not anew.deduplicated
    assert again == live._replace(deduplicated=True)
    await check_counts(acme, events=3, keys=2)


async def test_expired_key_taken_by_a_refused_call_is_deleted(acme: Rig) -> None:
    await publish(acme, keyed("old"))
    await acme.turn(KEY_WINDOW_S + 1)
    await publish(acme, keyed("taken"))
    with pytest.raises(AlreadyExistsError):
        await publish(acme, keyed("old", number=5), keyed("taken", number=2))

    (corrected,) = await publish(acme, keyed("old", number=6))
    assert not corrected.deduplicated


async def test_sweeper_deletes_only_expired_keys(acme: Rig) -> None:
    await publish(acme, *(keyed(f"old{n}") for n in range(5)))
    await acme.turn(KEY_WINDOW_S - 60)
    await publish(acme, keyed("new"))
    await acme.turn(61)

    assert await acme.upkeep_store.sweep_keys(3) == 3
    assert await acme.upkeep_store.sweep_keys(3) == 2
    assert await acme.upkeep_store.sweep_keys(3) == 0
    rows = await acme.database.fetch("SELECT key FROM idempotency_keys")
    assert [row["key"] for row in rows] == ["new"]


async def test_sweeper_keeps_a_key_that_is_taken_again_during_the_sweep(acme: Rig) -> None:
    """The sweeper selects the expired row, which belongs to a new event before the delete."""
    await publish(acme, keyed())
    await acme.turn(KEY_WINDOW_S + 1)
    async with running(acme.url, seed=2) as sweeper, rival(acme.url) as other:
        await other.execute(
            "UPDATE idempotency_keys SET expires_at = hookline_now() + interval '72 hours'"
        )
        sweeping = asyncio.create_task(sweeper.upkeep_store.sweep_keys(10))
        await until_blocked(acme.database, "upkeep")
        await other.execute("COMMIT")
        assert await sweeping == 0
    await check_counts(acme, events=1, keys=1)


# ------------------------------------------------------------- between a refusal and its repetition


async def test_key_swept_before_its_lookup_can_be_used_again(
    acme: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(acme, keyed())

    async def sweep() -> None:
        await acme.turn(KEY_WINDOW_S + 1)
        assert await acme.upkeep_store.sweep_keys(10) == 1

    at_lookups(monkeypatch, before=sweep)
    (anew,) = await publish(acme, keyed(number=2))

    assert not anew.deduplicated
    await check_counts(acme, events=2, keys=1)


async def test_keys_taken_after_the_lookup_are_looked_up_again(
    acme: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(acme.url, seed=2) as other:
        first = await publish(other, keyed("k0"))
        free = iter([keyed("k1"), keyed("k2")])

        async def take() -> None:
            for event in free:
                first.extend(await publish(other, event))
                break

        at_lookups(monkeypatch, after=take)
        results = await publish(acme, *[keyed(f"k{number}") for number in range(4)])

    assert results[:3] == [result._replace(deduplicated=True) for result in first]
    assert not results[3].deduplicated
    await check_counts(acme, events=4, keys=4)


async def test_only_the_call_whose_keys_are_taken_repeatedly_is_refused(
    acme: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"k{number}" for number in range(30)]
    async with running(acme.url, seed=2) as other:
        await publish(other, keyed(keys[0]))
        free = iter(keys[1:])

        async def take() -> None:
            await publish(other, keyed(next(free)))

        with monkeypatch.context() as patch:
            at_lookups(patch, after=take)
            refused, stored = await asyncio.gather(
                publish(acme, *[keyed(key) for key in keys]),
                publish(acme, order_created(2)),
                return_exceptions=True,
            )

    assert isinstance(refused, UnavailableError)
    assert refused.reason is Reason.CONCURRENT_CHANGE
    assert refused.retry_after_s is not None
    assert isinstance(stored, list)
    taken = 30 - len(list(free))
    await check_counts(acme, events=taken + 1, keys=taken)
    results = await publish(acme, *[keyed(key) for key in keys])
    assert [result.deduplicated for result in results] == [True] * taken + [False] * (30 - taken)
