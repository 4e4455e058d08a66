"""Authentication on several nodes: a change on one takes effect on all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc
import pytest

from hookline import HooklineClient
from hookline.errors import HooklineError, UnauthenticatedError
from hookline.v1.access_service_pb2 import CreateApiKeyRequest, RevokeApiKeyRequest
from hookline.v1.api_key_pb2 import API_KEY_SCOPE_PUBLISH, ApiKey
from hookline.v1.delivery_service_pb2 import WatchDeliveriesRequest
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import StreamPublishEventsRequest
from hookline.v1.operations_service_pb2 import GetStatusRequest
from hookline_service.app import App, StartError, create_api_key
from hookline_service.domain.caller import Scope
from hookline_service.store.api_keys import NewApiKey
from tests.app.test_node import settings
from tests.waiting import until

PUBLISHERS = CreateApiKeyRequest(api_key=ApiKey(scopes=[API_KEY_SCOPE_PUBLISH]))


def admin(_now: datetime) -> NewApiKey:
    return NewApiKey(
        display_name="first", tenant_id=None, scopes=frozenset({Scope.ADMIN}), expire_time=None
    )


@asynccontextmanager
async def guarded(database_url: str, **changes: str) -> AsyncIterator[str]:
    """A node that asks for keys; where it serves."""
    app = App(settings(database_url, HOOKLINE_AUTH="on", **changes))
    port = await app.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await app.stop()


@pytest.fixture
async def boss(database_url: str) -> str:
    return (await create_api_key(settings(database_url), admin))[1]


@dataclass
class Elsewhere:
    """Two nodes: a caller publishes on one, and its key can be revoked on the other."""

    publisher: HooklineClient
    revoke: Callable[[], Awaitable[object]]


@pytest.fixture
async def elsewhere(database_url: str, boss: str) -> AsyncIterator[Elsewhere]:
    async with (
        guarded(database_url) as one,
        guarded(database_url) as other,
        HooklineClient(one, token=boss) as client,
    ):
        made = await client.access.CreateApiKey(PUBLISHERS)
        request = RevokeApiKeyRequest(name=made.api_key.name)
        async with HooklineClient(other, token=made.token) as publisher:
            yield Elsewhere(publisher, lambda: client.access.RevokeApiKey(request))


async def test_the_first_key_is_made_in_the_database_and_makes_others(
    database_url: str, boss: str
) -> None:
    async with guarded(database_url) as target:
        async with HooklineClient(target) as unauthenticated:
            with pytest.raises(UnauthenticatedError) as refused:
                await unauthenticated.operations.GetStatus(GetStatusRequest())
        async with HooklineClient(target, token=boss) as client:
            await client.operations.GetStatus(GetStatusRequest())
            made = await client.access.CreateApiKey(PUBLISHERS)
        async with HooklineClient(target, token=made.token) as client:
            await client.publish("default", [Event(type="a.b", json_data="{}")])
            with pytest.raises(HooklineError, match="OPERATE"):
                await client.operations.GetStatus(GetStatusRequest())
        assert refused.value.reason == "UNAUTHENTICATED"


async def test_a_key_revoked_on_one_node_is_refused_by_the_other_within_5_seconds(
    elsewhere: Elsewhere,
) -> None:
    event = Event(type="a.b", json_data="{}")

    async def is_shut_out() -> bool:
        try:
            await elsewhere.publisher.publish("default", [event])
        except UnauthenticatedError:
            return True
        return False

    assert not await is_shut_out()
    await elsewhere.revoke()
    await until(is_shut_out, "the other node refuses the key", within_s=5)


def message(sequence: int) -> StreamPublishEventsRequest:
    event = Event(type="a.b", json_data="{}")
    return StreamPublishEventsRequest(sequence=sequence, tenant="tenants/default", events=[event])


async def messages(count: int) -> AsyncIterator[StreamPublishEventsRequest]:
    for sequence in range(1, count + 1):
        yield message(sequence)


async def test_the_client_sends_its_token_with_streams_of_every_kind(
    database_url: str, boss: str
) -> None:
    async with guarded(database_url) as target, HooklineClient(target, token=boss) as client:
        written: Any = client.events.StreamPublishEvents()
        for sequence in (1, 2):
            await written.write(message(sequence))
            assert (await written.read()).sequence == sequence
        await written.done_writing()
        assert await written.read() is grpc.aio.EOF
        iterated: Any = client.events.StreamPublishEvents(messages(3))
        assert [answer.sequence async for answer in iterated] == [1, 2, 3]
        with pytest.raises(grpc.aio.AioRpcError) as unbuilt:
            async for _ in client.deliveries.WatchDeliveries(
                WatchDeliveriesRequest(tenant="tenants/default", filter="!"), timeout=5
            ):
                pass
        assert unbuilt.value.code() is not grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_whose_key_is_revoked_on_another_node_ends_within_5_seconds(
    elsewhere: Elsewhere,
) -> None:
    stream: Any = elsewhere.publisher.events.StreamPublishEvents()
    await stream.write(message(1))
    assert (await stream.read()).sequence == 1
    await elsewhere.revoke()
    async with asyncio.timeout(5):
        assert await stream.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_node_without_the_master_key_of_the_deployment_does_not_start(
    database_url: str, boss: str
) -> None:
    del boss
    other = "b3RoZXJvdGhlcm90aGVyb3RoZXJvdGhlcm90aGVyISE="
    with pytest.raises(StartError, match="HOOKLINE_MASTER_KEY lacks"):
        async with guarded(database_url, HOOKLINE_MASTER_KEY=other):
            pass
    with pytest.raises(StartError, match="HOOKLINE_MASTER_KEY lacks"):
        await create_api_key(settings(database_url, HOOKLINE_MASTER_KEY=other), admin)
