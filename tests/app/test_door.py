"""Nodes behind a door: what one is told counts on all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import pytest

from hookline import HooklineClient
from hookline.errors import HooklineError, UnauthenticatedError
from hookline.v1.access_service_pb2 import CreateApiKeyRequest, RevokeApiKeyRequest
from hookline.v1.api_key_pb2 import API_KEY_SCOPE_PUBLISH, ApiKey
from hookline.v1.event_pb2 import Event
from hookline.v1.operations_service_pb2 import GetStatusRequest
from service.app import App, StartError, create_api_key
from service.domain.caller import Scope
from service.store.api_keys import NewApiKey
from tests.app.test_node import settings
from tests.waiting import until


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


async def test_the_first_key_is_made_in_the_database_and_makes_others(
    database_url: str, boss: str
) -> None:
    async with guarded(database_url) as target:
        async with HooklineClient(target) as stranger:
            with pytest.raises(UnauthenticatedError) as refused:
                await stranger.operations.GetStatus(GetStatusRequest())
        async with HooklineClient(target, token=boss) as client:
            await client.operations.GetStatus(GetStatusRequest())
            made = await client.access.CreateApiKey(
                CreateApiKeyRequest(api_key=ApiKey(scopes=[API_KEY_SCOPE_PUBLISH]))
            )
        async with HooklineClient(target, token=made.token) as client:
            await client.publish("default", [Event(type="a.b", json_data="{}")])
            with pytest.raises(HooklineError, match="OPERATE"):
                await client.operations.GetStatus(GetStatusRequest())
        assert refused.value.reason == "UNAUTHENTICATED"


async def test_a_key_that_is_revoked_on_one_node_is_shut_out_of_the_other_within_5_seconds(
    database_url: str, boss: str
) -> None:
    async with (
        guarded(database_url) as one,
        guarded(database_url) as other,
        HooklineClient(one, token=boss) as client,
    ):
        made = await client.access.CreateApiKey(
            CreateApiKeyRequest(api_key=ApiKey(scopes=[API_KEY_SCOPE_PUBLISH]))
        )
        async with HooklineClient(other, token=made.token) as publisher:
            event = Event(type="a.b", json_data="{}")

            async def is_shut_out() -> bool:
                try:
                    await publisher.publish("default", [event])
                except UnauthenticatedError:
                    return True
                return False

            assert not await is_shut_out()
            await client.access.RevokeApiKey(RevokeApiKeyRequest(name=made.api_key.name))
            await until(is_shut_out, "the other node heard of it", within_s=5)


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
