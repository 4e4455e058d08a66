"""The cache of API keys, and what may happen between a lookup and its result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from hookline_service.api.middleware.api_key_source import REFRESH_S, TOUCH_S, ApiKeySource
from hookline_service.domain.api_key import key_id_in
from hookline_service.domain.caller import Caller
from hookline_service.domain.errors import UnauthenticatedError
from hookline_service.store.api_keys import ApiKeyLookup, ApiKeys, FoundKey, NewApiKey
from hookline_service.store.database import Database
from tests.api.conftest import DEPLOYMENT_KEY
from tests.api.keyed import ALL, bearer
from tests.pipeline.rig import TurnableClock


class Held(ApiKeyLookup):
    """Delays the results of lookups until a test lets them return, and counts recorded uses."""

    def __init__(self, *args: Any) -> None:  # noqa: ANN401 (as its own)
        super().__init__(*args)
        self.may_return, self.has_read, self.notes = asyncio.Event(), asyncio.Event(), 0
        self.may_return.set()

    async def find(self, key_ids: Iterable[str]) -> dict[str, FoundKey]:
        found = await super().find(key_ids)
        self.has_read.set()
        await self.may_return.wait()
        return found

    async def touch(self, key_ids: Iterable[str]) -> None:
        self.notes += 1
        await super().touch(key_ids)


class Known:
    """A source that reads when a test says so, and a key."""

    def __init__(self, database: Database) -> None:
        self.clock = TurnableClock()
        self.lookup = Held(database.session("access"))
        self.source = ApiKeySource(self.lookup, DEPLOYMENT_KEY, self.clock, max_cached=10)
        self.keys = ApiKeys(database, DEPLOYMENT_KEY)
        self.token = ""

    def ask(self) -> asyncio.Task[Caller | None]:
        return asyncio.create_task(self.source.authenticate(bearer(self.token), dict, ""))

    async def revoke_while_it_is_read(self) -> None:
        self.lookup.may_return.clear()
        self.lookup.has_read.clear()
        reading = asyncio.create_task(self.source.read())
        await self.lookup.has_read.wait()
        key_id = key_id_in(self.token) or ""
        await self.keys.revoke(key_id, None)
        self.source.forget(key_id)
        self.lookup.may_return.set()
        await reading

    async def call(self) -> Caller | None:
        asking = self.ask()
        await asyncio.sleep(0)
        await self.source.read()
        return await asking


@pytest.fixture
async def known(database_url: str) -> AsyncIterator[Known]:
    database = Database(database_url)
    await database.open()
    known = Known(database)
    draft = NewApiKey(display_name="", tenant_id=None, scopes=ALL, expire_time=None)
    known.token = (await known.keys.create(draft))[1]
    yield known
    await known.source.stop()
    await database.close()


async def test_a_key_revoked_while_it_is_read_again_is_refused(known: Known) -> None:
    await known.call()
    known.clock.ahead_s += REFRESH_S
    await known.revoke_while_it_is_read()
    with pytest.raises(UnauthenticatedError):
        await known.call()


async def test_a_key_revoked_while_it_is_looked_up_is_refused(known: Known) -> None:
    asking = known.ask()
    await asyncio.sleep(0)
    await known.revoke_while_it_is_read()
    with pytest.raises(UnauthenticatedError):
        await asking
    with pytest.raises(UnauthenticatedError):
        await known.call()


async def test_use_is_recorded_once_a_minute(known: Known) -> None:
    for _ in range(3):
        await known.call()
        known.clock.ahead_s += REFRESH_S
    assert known.lookup.notes == 1
    known.clock.ahead_s += TOUCH_S
    await known.call()
    assert known.lookup.notes == 2


async def test_calls_that_wait_for_a_lookup_are_refused_when_the_node_stops(known: Known) -> None:
    asking = known.ask()
    await asyncio.sleep(0)
    await known.source.stop()
    await asyncio.wait({asking}, timeout=10)
    assert asking.cancelled(), "which the gateway makes an answer of"
