"""Repeating a record batch after deadlocks and while the database is in trouble. Rule 22."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from hookline_service.domain.errors import Reason, UnavailableError
from hookline_service.pipeline.dispatch.record import (
    DEADLOCK_BACKOFF_S,
    DEADLOCKS_MAX,
    deadlock_backoff_s,
)
from hookline_service.store.database import ContentionError
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.waiting import until


def test_backoff_after_deadlocks_doubles_up_to_a_number() -> None:
    lost = ContentionError("deadlock detected")

    most = [deadlock_backoff_s(lost, repeats, 1.0) for repeats in range(1, DEADLOCKS_MAX + 1)]

    assert most == [DEADLOCK_BACKOFF_S * 2**n for n in range(DEADLOCKS_MAX - 1)] + [None]
    assert deadlock_backoff_s(lost, DEADLOCKS_MAX + 1, 0.5) == DEADLOCK_BACKOFF_S / 2
    assert deadlock_backoff_s(lost, DEADLOCKS_MAX - 1, 0.0) == 0.0


def test_unreachable_database_has_no_deadlock_backoff() -> None:
    away = UnavailableError("away", Reason.DATABASE_UNAVAILABLE)

    assert deadlock_backoff_s(away, 1, 0.5) is None


async def lose_deadlocks(rig: Rig, until_try: int) -> None:
    """Make every record before its `until_try`-th try lose a deadlock."""
    await rig.database.fetch("CREATE SEQUENCE tries")
    await rig.database.fetch(
        f"""CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS
           $$BEGIN
               IF nextval('tries') < {until_try} THEN
                   RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01';
               END IF;
               RETURN NEW;
           END$$"""
    )
    await rig.database.fetch(
        "CREATE TRIGGER lose BEFORE INSERT ON deliveries FOR EACH ROW EXECUTE FUNCTION lose()"
    )


async def test_batch_is_repeated_after_deadlocks_and_many_are_logged(
    rig: Rig, receiver: Receiver
) -> None:
    await rig.subscription(await rig.tenant(), receiver.url)
    await lose_deadlocks(rig, DEADLOCKS_MAX + 3)

    with capture_logs() as logs:
        await rig.publisher.publish("acme", [order_created()])
        await until(lambda: rig.recorder.recorded == 1, "it is recorded")

    assert [line["error"] for line in logs if line["event"] == "record_retried"] == [
        "deadlock detected"
    ]
    assert len(receiver.ids) == 1


async def test_stop_does_not_wait_for_endless_deadlocks(
    database_url: str, receiver: Receiver
) -> None:
    async with running(database_url) as rig:
        await rig.subscription(await rig.tenant(), receiver.url)
        await lose_deadlocks(rig, 1_000_000)
        await rig.publisher.publish("acme", [order_created()])
        await receiver.wait_for(1)

        await asyncio.wait_for(rig.recorder.stop(), 15)

        assert len(await rig.pending()) == 1
