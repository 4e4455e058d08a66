"""Idempotency keys: one event and one fan-out for a key; a refused batch stores no key."""

import asyncio
from datetime import UTC, datetime

import pytest

from hookline_service.domain.errors import AlreadyExistsError, HooklineError, Reason
from hookline_service.pipeline.publishing.group import fingerprint_of
from tests.pipeline.keys import check_counts, keyed, name_of, publish
from tests.pipeline.rig import Receiver, Rig, order_created
from tests.pipeline.rival import BUMP, rival, until_blocked

# ------------------------------------------------------------------------------- within a batch


async def test_equal_events_with_one_key_in_a_batch_are_stored_once(acme: Rig) -> None:
    first, other, again = await publish(acme, keyed("a"), keyed("b"), keyed("a"))

    assert again == first._replace(deduplicated=True)
    assert not first.deduplicated
    assert other.event_id != first.event_id
    await check_counts(acme, events=2, keys=2)


async def test_batch_with_unequal_events_of_one_key_is_refused(acme: Rig) -> None:
    with pytest.raises(AlreadyExistsError) as refusal:
        await publish(acme, keyed("a"), order_created(), keyed("a", number=2))

    assert refusal.value.reason is Reason.IDEMPOTENCY_KEY_REUSED
    assert refusal.value.metadata["index"] == "2"
    await check_counts(acme, events=0, keys=0)
    (corrected,) = await publish(acme, keyed("a", number=2))
    assert not corrected.deduplicated


# ------------------------------------------------------------------------------- within a group


async def test_concurrent_calls_with_one_key_store_one_event(acme: Rig) -> None:
    results = await asyncio.gather(*(publish(acme, keyed()) for _ in range(50)))

    assert len({result[0].event_id for result in results}) == 1
    assert [result[0].deduplicated for result in results].count(False) == 1
    assert {result[0].delivery_count for result in results} == {1}
    assert acme.publisher.committed_groups == 1, "the others followed the first one in memory"
    await check_counts(acme, events=1, keys=1)


async def test_different_concurrent_event_with_the_key_is_refused_with_the_name_of_the_first(
    acme: Rig,
) -> None:
    first, reused = await asyncio.gather(
        publish(acme, keyed()),
        publish(acme, order_created(7), keyed(number=2)),
        return_exceptions=True,
    )

    assert isinstance(first, list)
    assert isinstance(reused, AlreadyExistsError)
    assert reused.metadata == {"index": "1", "name": name_of(first[0])}
    await check_counts(acme, events=1, keys=1)


async def test_follower_with_further_events_stores_them_itself(acme: Rig) -> None:
    first, second = await asyncio.gather(
        publish(acme, keyed("a")), publish(acme, keyed("a"), keyed("b", number=2))
    )

    assert second[0] == first[0]._replace(deduplicated=True)
    assert not second[1].deduplicated
    await check_counts(acme, events=2, keys=2)


async def test_follower_of_a_refused_leader_is_stored(acme: Rig) -> None:
    await publish(acme, keyed("taken"))

    refused, follower = await asyncio.gather(
        publish(acme, keyed("new", number=5), keyed("taken", number=2)),
        publish(acme, keyed("new", number=5)),
        return_exceptions=True,
    )

    assert isinstance(refused, AlreadyExistsError)
    assert isinstance(follower, list)
    assert not follower[0].deduplicated
    await check_counts(acme, events=2, keys=2)


async def test_follower_of_a_deduplicated_leader_gets_the_first_event(acme: Rig) -> None:
    (first,) = await publish(acme, keyed())
    results = await asyncio.gather(*(publish(acme, keyed()) for _ in range(3)))

    assert [result[0] for result in results] == [first._replace(deduplicated=True)] * 3
    await check_counts(acme, events=1, keys=1)


async def test_idempotency_keys_are_scoped_to_the_tenant(acme: Rig) -> None:
    await acme.tenant("globex")
    results = await asyncio.gather(
        *(acme.publisher.publish(tenant, [keyed()]) for tenant in ("acme", "globex"))
    )
    assert [result[0].deduplicated for result in results] == [False, False]
    await check_counts(acme, events=2, keys=2, deliveries=1)


# -------------------------------------------------------------------------------- across groups


async def test_repeated_key_returns_the_first_event_without_a_second_fan_out(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    (first,) = await publish(rig, keyed())
    await receiver.wait_for(1)
    await rig.subscription(tenant_uid, receiver.url)  # a second fan-out would reach this one, too

    (again,) = await publish(rig, keyed())
    (other,) = await publish(rig, order_created(2))

    assert again == first._replace(deduplicated=True)
    assert other.delivery_count == 2
    await receiver.wait_for(3)
    assert sorted(receiver.counts.values()) == [1, 2]


async def test_occur_time_is_not_compared(acme: Rig) -> None:
    (first,) = await publish(acme, keyed(occur_time=datetime(2026, 1, 1, tzinfo=UTC)))
    (again,) = await publish(acme, keyed(occur_time=datetime(2026, 1, 2, tzinfo=UTC)))
    assert again == first._replace(deduplicated=True)


async def test_default_source_equals_the_same_source_set_explicitly(acme: Rig) -> None:
    """A client that publishes the result of GetEvent again sends the default source explicitly."""
    (first,) = await publish(acme, keyed())
    (again,) = await publish(acme, keyed(source="/tenants/acme"))
    assert again == first._replace(deduplicated=True)


@pytest.mark.parametrize(
    "changed",
    [
        {"type": "order.paid"}, {"source": "/x"}, {"subject": "x"}, {"ordering_key": "x"},
        {"attributes": {"a": "x"}}, {"content_type": "text/plain"}, {"external_id": "x"},
        {"data": b'{"id":2}'}, {"data_schema": "x"}, {"is_json": False},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
async def test_key_with_another_value_of_a_compared_field_is_refused(
    acme: Rig, changed: dict[str, object]
) -> None:
    (first,) = await publish(acme, keyed())
    with pytest.raises(AlreadyExistsError) as refusal:
        await publish(acme, keyed(**changed))  # type: ignore[arg-type]  # a test's own fields
    assert refusal.value.metadata == {"index": "0", "name": name_of(first)}
    await check_counts(acme, events=1, keys=1)


def test_fingerprint_separates_adjacent_fields() -> None:
    one, other = order_created(source="ab", subject="c"), order_created(source="a", subject="bc")
    assert fingerprint_of(one, "acme") != fingerprint_of(other, "acme")


def test_fingerprint_does_not_depend_on_the_order_of_attributes() -> None:
    one = order_created(attributes={"a": "1", "b": "2"})
    other = order_created(attributes={"b": "2", "a": "1"})
    assert fingerprint_of(one, "acme") == fingerprint_of(other, "acme")


async def test_new_keys_of_a_refused_call_can_be_used_again(acme: Rig) -> None:
    """Otherwise the corrected retry would get the name of an event that does not exist."""
    await publish(acme, keyed("taken"))
    with pytest.raises(AlreadyExistsError):
        await publish(acme, keyed("new", number=5), keyed("taken", number=2))
    await check_counts(acme, events=1, keys=1)

    corrected = await publish(acme, keyed("new", number=6), keyed("other", number=2))
    assert [result.deduplicated for result in corrected] == [False, False]
    await check_counts(acme, events=3, keys=3)


async def test_batch_of_old_and_new_keys_stores_only_the_new_events(acme: Rig) -> None:
    (old,) = await publish(acme, keyed("old"))
    results = await publish(acme, order_created(2), keyed("old"), keyed("new", number=3))

    assert [result.deduplicated for result in results] == [False, True, False]
    assert results[1].event_id == old.event_id
    await check_counts(acme, events=3, keys=2)
    rows = await acme.database.fetch("SELECT data FROM events ORDER BY ordinal")
    assert [row["data"] for row in rows] == [b'{"id":1}', b'{"id":2}', b'{"id":3}']
    ordinals = await acme.database.fetch(
        """SELECT FROM pending_deliveries p JOIN events e USING (event_id)
           WHERE p.ordinal = e.ordinal"""
    )
    assert len(ordinals) == 3


async def test_calls_of_a_group_with_different_results_are_answered_separately(acme: Rig) -> None:
    (old,) = await publish(acme, keyed("old"))
    results = await asyncio.gather(
        publish(acme, order_created(2)),
        publish(acme, keyed("old")),
        publish(acme, keyed("fresh", number=9), keyed("old", number=3)),
        publish(acme, keyed("new", number=4)),
        return_exceptions=True,
    )

    assert [isinstance(result, list) for result in results] == [True, True, False, True]
    assert results[1] == [old._replace(deduplicated=True)]
    await check_counts(acme, events=3, keys=2)


# ---------------------------------------------------------------------------------- with an epoch


async def test_keys_of_a_tenant_whose_epoch_moved_are_stored_once(acme: Rig) -> None:
    globex = await acme.tenant("globex")
    await acme.publisher.publish("globex", [order_created(0)])

    async with rival(acme.url) as other:
        await other.fetchval(BUMP, globex)
        publishing = [
            asyncio.create_task(acme.publisher.publish(tenant, [keyed()]))
            for tenant in ("acme", "globex")
        ]
        await until_blocked(acme.database, "contended")
        await other.execute("COMMIT")
        results = await asyncio.gather(*publishing)

    assert [result[0].deduplicated for result in results] == [False, False]
    await check_counts(acme, events=3, keys=2, deliveries=1)


async def test_tenant_deleted_during_a_publish_leaves_no_keys(acme: Rig) -> None:
    globex = await acme.tenant("globex")
    await acme.publisher.publish("globex", [order_created(0)])

    async with rival(acme.url) as other:
        await other.execute(
            "UPDATE tenants SET deleted_at = now(), epoch = epoch + 1 WHERE tenant_uid = $1", globex
        )
        publishing = asyncio.create_task(acme.publisher.publish("globex", [keyed()]))
        await until_blocked(acme.database, "contended")
        await other.execute("COMMIT")
        (result,) = await asyncio.gather(publishing, return_exceptions=True)

    assert isinstance(result, Exception)
    await check_counts(acme, events=1, keys=0, deliveries=0)


async def test_taken_keys_are_resolved_in_a_group_with_an_outdated_epoch(acme: Rig) -> None:
    (tenant,) = await acme.database.fetch("SELECT tenant_uid FROM tenants")
    (old,) = await publish(acme, keyed("old"))
    await acme.database.fetch(BUMP, tenant["tenant_uid"])

    repeated, reused, new = await asyncio.gather(
        publish(acme, keyed("old")),
        publish(acme, keyed("old", number=2)),
        publish(acme, keyed("new", number=3)),
        return_exceptions=True,
    )

    assert repeated == [old._replace(deduplicated=True)]
    assert isinstance(reused, AlreadyExistsError)
    assert isinstance(new, list)
    await check_counts(acme, events=2, keys=2)


async def test_taken_keys_are_resolved_while_the_tenant_is_being_changed(acme: Rig) -> None:
    (tenant,) = await acme.database.fetch("SELECT tenant_uid FROM tenants")
    (old,) = await publish(acme, keyed("old"))

    async with rival(acme.url) as other:
        await other.fetchval(BUMP, tenant["tenant_uid"])
        calls = [keyed("old")], [keyed("old", number=2), keyed("lost")], [keyed("new", number=3)]
        publishing = [asyncio.create_task(publish(acme, *events)) for events in calls]
        await until_blocked(acme.database, "contended")
        await other.execute("COMMIT")
        repeated, reused, new = await asyncio.gather(*publishing, return_exceptions=True)

    assert repeated == [old._replace(deduplicated=True)]
    assert isinstance(reused, AlreadyExistsError)
    assert isinstance(new, list)
    assert not new[0].deduplicated
    await check_counts(acme, events=2, keys=2)


# ----------------------------------------------------------------- with what cannot be stored


async def test_follower_in_a_split_group_gets_the_stored_event(acme: Rig) -> None:
    """It does not get the id that the leader had in the group that failed."""
    (old,) = await publish(acme, keyed("old"))
    await acme.database.fetch("ALTER TABLE events ADD CHECK (subject <> 'poison')")

    repeated, poison, leader, follower = await asyncio.gather(
        publish(acme, keyed("old")),
        publish(acme, order_created(subject="poison")),
        publish(acme, keyed("new")),
        publish(acme, keyed("new")),
        return_exceptions=True,
    )

    assert repeated == [old._replace(deduplicated=True)]
    assert isinstance(poison, HooklineError)
    assert isinstance(leader, list)
    assert follower == [leader[0]._replace(deduplicated=True)]
    await check_counts(acme, events=2, keys=2)
