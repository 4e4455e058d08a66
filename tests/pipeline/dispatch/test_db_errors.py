"""How long a record batch waits that could not be written. Rule 22."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from hookline_service.domain.errors import Reason, UnavailableError
from hookline_service.pipeline.dispatch.db_errors import (
    FIRST_PAUSE_S,
    LOST_MOST,
    deadlock_backoff_s,
    is_transient,
)
from hookline_service.store.database import ContentionError, OutcomeUnknownError, RejectedError
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.waiting import until


def test_lost_deadlocks_wait_at_random_and_longer_each_time_until_they_are_trouble() -> None:
    lost = ContentionError("deadlock detected")

    most = [deadlock_backoff_s(lost, repeats, 1.0) for repeats in range(1, LOST_MOST + 1)]

    assert most == [FIRST_PAUSE_S * 2**n for n in range(LOST_MOST - 1)] + [None]
    assert deadlock_backoff_s(lost, LOST_MOST + 1, 0.5) == FIRST_PAUSE_S / 2
    assert deadlock_backoff_s(lost, LOST_MOST - 1, 0.0) == 0.0


def test_a_database_in_trouble_is_no_lost_deadlock() -> None:
    away = UnavailableError("away", Reason.DATABASE_UNAVAILABLE)

    assert deadlock_backoff_s(away, 1, 0.5) is None


def test_what_passes_is_told_from_what_a_row_is_to_blame_for() -> None:
    full, too_long = RejectedError("disk full", "53100"), RejectedError("too long", "22001")

    assert is_transient(full)
    assert is_transient(OutcomeUnknownError("lost"))
    assert not is_transient(too_long)
    assert not is_transient(ValueError("ours"))


async def lose_deadlocks(rig: Rig, until_try: int) -> None:
    """Every record before its `until_try`-th try loses a deadlock; the sequence counts them."""
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


async def test_lost_deadlocks_are_run_again_and_many_in_a_row_are_told(
    rig: Rig, receiver: Receiver
) -> None:
    await rig.subscription(await rig.tenant(), receiver.url)
    await lose_deadlocks(rig, LOST_MOST + 3)

    with capture_logs() as logs:
        await rig.publisher.publish("acme", [order_created()])
        await until(lambda: rig.recorder.recorded == 1, "it is recorded")

    assert [line["error"] for line in logs if line["event"] == "record_retried"] == [
        "deadlock detected"
    ]
    assert len(receiver.ids) == 1


async def test_a_stop_does_not_wait_for_a_deadlock_that_never_ends(
    database_url: str, receiver: Receiver
) -> None:
    async with running(database_url) as rig:
        await rig.subscription(await rig.tenant(), receiver.url)
        await lose_deadlocks(rig, 1_000_000)
        await rig.publisher.publish("acme", [order_created()])
        await receiver.wait_for(1)

        await asyncio.wait_for(rig.recorder.stop(), 15)

        assert len(await rig.pending()) == 1
