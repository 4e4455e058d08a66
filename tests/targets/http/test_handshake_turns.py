"""FairScheduler for TLS handshakes: each that is taken is given back, however a waiter ends."""

from __future__ import annotations

import asyncio
import random

import pytest

from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.handshake_turns import HandshakeTurns
from tests.waiting import until


async def test_no_turn_is_lost_whenever_waiters_are_cancelled_or_fail() -> None:
    turns, running, most = HandshakeTurns(6), 0, 0

    async def shake(tenant_id: str, steps: int, *, fails: bool) -> None:
        nonlocal running, most
        async with turns.turn(tenant_id):
            running += 1
            most = max(most, running)
            try:
                for _ in range(steps):
                    await asyncio.sleep(0)
                assert not fails
            finally:
                running -= 1

    chance = random.Random(7)
    for _ in range(40):
        tasks = [
            asyncio.create_task(
                shake(chance.choice("abc"), chance.randrange(6), fails=chance.random() < 0.2)
            )
            for _ in range(60)
        ]
        while not all(task.done() for task in tasks):
            chance.choice(tasks).cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert running == 0
        assert turns.waiting_count == 0
    assert most > 1
    async with asyncio.timeout(20), turns.turn("a"), turns.turn("b"), turns.turn("a"):
        pass


async def test_a_waiter_that_gave_up_leaves_its_place_to_another() -> None:
    turns = HandshakeTurns(1, waiting_max=5)

    async def shake() -> None:
        async with turns.turn("busy"):
            await asyncio.get_running_loop().create_future()

    async with turns.turn("other"):
        for _ in range(3):
            tasks = [asyncio.create_task(shake()) for _ in range(4)]
            await until(lambda: turns.waiting_count == 4, "they wait")
            with pytest.raises(AttemptFailure, match="too many connections wait"):
                await shake()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert turns.waiting_count == 0
