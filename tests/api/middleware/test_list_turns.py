"""Lists of one tenant: so many are read at once, so many more wait, and others are refused."""

import asyncio

import pytest

from hookline_service.api.middleware.admission import WAITING_LISTS_FACTOR, ListTurns
from hookline_service.domain.errors import Reason, ResourceExhaustedError


async def test_lists_beyond_the_limit_wait_without_delaying_other_tenants() -> None:
    turns = ListTurns(2, 8)
    async with turns.turn("tenants/acme"):
        async with turns.turn("tenants/acme"):
            third = asyncio.create_task(_once(turns))
            await asyncio.sleep(0)
            async with turns.turn("tenants/globex"):
                assert not third.done()
        await third


async def test_too_many_lists_are_refused_with_the_setting() -> None:
    turns = ListTurns(1, 8)
    async with turns.turn("tenants/acme"):
        waiting = [asyncio.create_task(_once(turns)) for _ in range(WAITING_LISTS_FACTOR - 1)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError) as refusal:
            await _once(turns)
        assert refusal.value.reason is Reason.OVERLOADED
        assert refusal.value.metadata["limit"] == "HOOKLINE_MAX_TENANT_LISTS"
        assert refusal.value.retry_after_s is not None
    await asyncio.gather(*waiting)
    await _once(turns)


async def test_a_cancelled_wait_frees_its_place() -> None:
    turns = ListTurns(1, 8)
    async with turns.turn("tenants/acme"):
        waiting = [asyncio.create_task(_once(turns)) for _ in range(WAITING_LISTS_FACTOR - 1)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        waiting = [asyncio.create_task(_once(turns))]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)


async def test_all_tenants_together_have_a_bound() -> None:
    turns = ListTurns(2, 2)
    async with turns.turn("tenants/acme"):
        async with turns.turn("tenants/globex"):
            third = asyncio.create_task(_once(turns, "tenants/initech"))
            for _ in range(3):
                await asyncio.sleep(0)
            assert not third.done()
        await third


async def _once(turns: ListTurns, tenant: str = "tenants/acme") -> None:
    async with turns.turn(tenant):
        pass
