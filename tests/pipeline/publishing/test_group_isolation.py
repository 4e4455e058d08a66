"""Isolation in a group commit: no call fails for the data of another."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from hookline_service.domain.errors import (
    HooklineError,
    InvalidArgumentError,
    Reason,
    UnavailableError,
)
from hookline_service.domain.event import NewEvent
from hookline_service.pipeline.publishing.group import Published
from tests.pipeline.rig import Receiver, Rig, order_created
from tests.pipeline.rival import BUMP, rival, take_key, until_blocked

Outcomes = list[list[Published] | BaseException]


@pytest.mark.parametrize(
    "invalid",
    [
        order_created(subject="a\x00b"),
        order_created(attributes={"note": "a\x00b"}),
        order_created(attributes={"note": "\ud800"}),
        order_created(subject="\ud800", idempotency_key="k"),
        order_created(subject="\ud800"),
        order_created(attributes={"note": object()}),
    ],
    ids=["nul", "nul in json", "surrogate in json", "surrogate and key", "surrogate", "an object"],
)
async def test_invalid_data_is_refused_without_affecting_its_group(
    rig: Rig, receiver: Receiver, invalid: NewEvent
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)

    outcomes = await _together(rig, *[order_created(n) for n in range(3)], invalid,
                               *[order_created(n) for n in range(3, 8)])  # fmt: skip

    refused = outcomes.pop(3)
    assert isinstance(refused, Exception)
    if isinstance(refused, HooklineError):
        assert isinstance(refused, InvalidArgumentError)
        assert refused.reason is Reason.PAYLOAD_INVALID
    await _check_stored(rig, outcomes, 8)
    await receiver.wait_for(1 + 8)


async def test_violated_constraint_fails_only_one_call_of_a_group(rig: Rig) -> None:
    await rig.tenant()
    await rig.database.fetch("ALTER TABLE events ADD CHECK (subject <> 'poison')")

    outcomes = await _together(
        rig, order_created(0), order_created(subject="poison"), order_created(1)
    )

    refused = outcomes.pop(1)
    assert isinstance(refused, HooklineError)
    assert refused.reason is Reason.INTERNAL, "a violated constraint is an internal error"
    await _check_stored(rig, outcomes, 2)
    assert (await _outcome(rig, order_created(2)))[0].deduplicated is False


async def test_refused_call_stores_no_idempotency_key(rig: Rig) -> None:
    await rig.tenant()
    await rig.database.fetch("ALTER TABLE events ADD CHECK (subject <> 'poison')")

    outcomes = await _together(
        rig,
        order_created(0, idempotency_key="a"),
        order_created(1, idempotency_key="b", subject="poison"),
        order_created(2, idempotency_key="c"),
    )

    assert isinstance(outcomes.pop(1), HooklineError)
    await _check_stored(rig, outcomes, 2)
    (corrected,) = await _outcome(rig, order_created(1, idempotency_key="b"))
    assert not corrected.deduplicated


async def test_full_disk_is_reported_as_unavailable(rig: Rig) -> None:
    """The error is transient and nothing was stored, so the caller may repeat the call."""
    await rig.tenant()
    await rig.database.fetch(
        """CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'disk full'; END $$"""
    )
    await rig.database.fetch(
        "CREATE TRIGGER t BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION full_disk()"
    )
    with pytest.raises(UnavailableError):
        await _outcome(rig, order_created())
    await rig.database.fetch("DROP TRIGGER t ON events")
    await _outcome(rig, order_created())


async def test_publish_is_retried_after_a_deadlock(rig: Rig) -> None:
    tenant_uid = await rig.tenant()
    await _outcome(rig, order_created(0))

    # A session that has waited for a second checks for a deadlock: the publish, which begins to
    # wait first, unless this machine is so busy that the rival begins a second late.
    for number in range(1, 6):
        if await _loses_deadlock(rig, tenant_uid, number):
            break
    else:
        pytest.fail("the rival lost every deadlock")


async def _loses_deadlock(rig: Rig, tenant_uid: UUID, number: int) -> bool:
    """Return whether the publish was the victim; its event is stored once in either case."""
    is_lost = True
    async with rival(rig.url) as other, rival(rig.url) as witness:
        # The publish holds the tenant and waits for the key; the rival the other way round.
        await take_key(other, tenant_uid, f"k{number}")
        event = order_created(number, idempotency_key=f"k{number}")
        publishing = asyncio.create_task(_outcome(rig, event))
        await until_blocked(rig.database)
        is_free = "SELECT pg_try_advisory_xact_lock(hookline_epoch_lock($1))"
        assert not await witness.fetchval(is_free, tenant_uid)
        try:
            await other.execute(BUMP, tenant_uid)  # granted: the publish was rolled back
        except asyncpg.DeadlockDetectedError:
            is_lost = False
        await other.execute("ROLLBACK")
        (published,) = await publishing

    rows = await rig.database.fetch("SELECT event_id FROM events WHERE data = $1", event.data)
    assert [row["event_id"] for row in rows] == [published.event_id]
    return is_lost


async def _together(rig: Rig, *events: NewEvent) -> Outcomes:
    """Publish each event in a call of its own, all in one group."""
    await rig.publisher.publish("acme", [order_created(100)])
    return await asyncio.gather(
        *(rig.publisher.publish("acme", [event]) for event in events), return_exceptions=True
    )


async def _outcome(rig: Rig, event: NewEvent) -> list[Published]:
    return await rig.publisher.publish("acme", [event])


async def _check_stored(rig: Rig, outcomes: Outcomes, count: int) -> None:
    ids = {outcome[0].event_id for outcome in outcomes if isinstance(outcome, list)}
    assert len(ids) == count
    rows = await rig.database.fetch("SELECT event_id FROM events WHERE data <> $1", b'{"id":100}')
    assert {row["event_id"] for row in rows} == ids
