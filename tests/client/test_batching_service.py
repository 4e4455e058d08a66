"""`client.batching` with a real service: events are stored once and in order across restarts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson
import pytest

from hookline import HooklineClient
from hookline.batching import BatchingPublisher
from hookline.errors import HooklineError
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishResult
from hookline_service.api.middleware.authentication import Anonymous
from hookline_service.api.server import ApiServer
from hookline_service.app import App
from hookline_service.config import Role, Settings
from hookline_service.domain.event import EventType, EventTypeState
from hookline_service.domain.limits import Limits
from tests.api.conftest import Api, servicers_of, serving
from tests.api.streaming import stored, uncommitted
from tests.pipeline.rival import until_blocked
from tests.waiting import until


def numbered(number: int, **fields: Any) -> Event:  # noqa: ANN401 (any field)
    return Event(**({"type": "order.created", "json_data": f'{{"n":{number}}}'} | fields))


def number_of(data: bytes) -> int:
    number: int = orjson.loads(data)["n"]
    return number


@asynccontextmanager
async def acme(url: str, limits: Limits | None = None) -> AsyncIterator[tuple[Api, HooklineClient]]:
    async with serving(url, limits=limits or Limits()) as api:
        await api.rows.tenant("acme")
        async with HooklineClient(f"127.0.0.1:{api.port}") as client:
            yield api, client


async def test_single_events_are_stored_once_and_in_order(database_url: str) -> None:
    async with acme(database_url) as (api, client):
        async with client.batching("acme", max_events=50, max_pending_events=300) as publisher:
            results = await asyncio.gather(*[publisher.publish(numbered(n)) for n in range(1_000)])
        assert [number_of(data) for data in await stored(api)] == list(range(1_000))
        assert len({result.name for result in results}) == 1_000
        assert not any(result.deduplicated for result in results)
        keys = await api.rig.database.fetch("SELECT idempotency_key FROM events ORDER BY ordinal")
        assert [row["idempotency_key"] for row in keys] == sorted(
            {r["idempotency_key"] for r in keys}
        )


async def test_a_rejected_event_raises_the_same_error_as_when_published_alone(
    database_url: str,
) -> None:
    async with acme(database_url) as (api, client):
        api.rig.event_types.event_types = [
            EventType(name="order.old", state=EventTypeState.ARCHIVED),
            EventType(name="order.strict", json_schema='{"type":"object"}', revision=1),
        ]
        await api.rig.catalog.reload()
        await client.publish("acme", [numbered(-1, idempotency_key="taken")])
        bad = {
            1: numbered(1, type=""),
            2: numbered(2, json_data="{", source="☂", idempotency_key="tab\t"),
            4: numbered(4, type="order.old"),
            5: numbered(5, idempotency_key="taken"),
            7: numbered(7, type="order.strict", json_data="[]"),
            8: numbered(8, attributes={"Region": "eu"}),
        }
        async with client.batching("acme") as publisher:
            outcomes = await asyncio.gather(
                *[publisher.publish(bad.get(n, numbered(n))) for n in range(10)],
                return_exceptions=True,
            )

        for place, event in bad.items():
            with pytest.raises(HooklineError) as alone:
                await client.publish("acme", [event])
            assert _error_content(outcomes[place]) == _error_content(alone.value)
        good = [n for n in range(10) if n not in bad]
        assert all(isinstance(outcomes[n], PublishResult) for n in good)
        assert [number_of(data) for data in await stored(api)] == [-1, *good]


async def test_a_batch_larger_than_the_service_allows_is_stored_in_parts(database_url: str) -> None:
    async with acme(database_url, Limits(max_batch_events=8)) as (api, client):
        async with client.batching("acme", max_events=30) as publisher:
            await asyncio.gather(*[publisher.publish(numbered(n)) for n in range(100)])
        assert [number_of(data) for data in await stored(api)] == list(range(100))


async def test_events_are_stored_after_the_overload_ends(database_url: str) -> None:
    async with acme(database_url, Limits(max_queued_publish_events=100)) as (api, client):
        await client.publish("acme", [numbered(-1)])
        publisher = client.batching("acme", max_events=50)
        async with uncommitted(api):
            others = [asyncio.create_task(client.publish("acme", [numbered(-2)]))]
            await until_blocked(api.rig.database)
            others.append(asyncio.create_task(client.publish("acme", [numbered(-3)] * 60)))
            publishing = [asyncio.create_task(publisher.publish(numbered(n))) for n in range(50)]

            def is_refused() -> bool:
                return any(code.name == "RESOURCE_EXHAUSTED" for _, code in api.calls.ended)

            await until(is_refused, "the batch is refused")
        await publisher.close()
        await asyncio.gather(*others)
        assert all(task.result().name for task in publishing)
        assert len(await stored(api)) == 1 + 1 + 60 + 50


async def test_a_lost_response_is_repeated_without_a_duplicate(
    database_url: str,
) -> None:
    async with acme(database_url) as (api, client):
        await client.publish("acme", [numbered(-1)])
        async with client.batching("acme") as publisher:
            async with uncommitted(api):
                publishing = [
                    asyncio.create_task(publisher.publish(numbered(n))) for n in range(20)
                ]
                await until_blocked(api.rig.database)
                await api.server.stop(0)  # the call is cut off; its group goes on
            again = ApiServer(
                servicers_of(api.rig),
                address=f"127.0.0.1:{api.port}",
                limits=api.rig.limits,
                identities=[Anonymous()],
            )
            await again.start()
            results = await asyncio.gather(*publishing)
            await again.stop(0)
        assert [number_of(data) for data in await stored(api)] == [-1, *range(20)]
        assert {result.deduplicated for result in results} == {True}
        assert len({result.name for result in results}) == 20


async def test_restarts_of_the_service_lose_and_duplicate_no_event(database_url: str) -> None:
    """Each of several tasks publishes one event after the other, meanwhile."""
    app, published = App(_settings(database_url)), 0
    port = await app.start()
    is_over = asyncio.Event()

    async def go_on(publisher: BatchingPublisher, first: int) -> list[PublishResult]:
        nonlocal published
        results: list[PublishResult] = []
        while not is_over.is_set():
            results.append(await publisher.publish(numbered(first + 10 * len(results))))
            published += 1
        return results

    async with HooklineClient(f"127.0.0.1:{port}") as client, client.batching("default") as it:
        tasks = [asyncio.create_task(go_on(it, first)) for first in range(10)]
        for _ in range(2):
            enough = published + 50
            await until(lambda: published >= enough, "some were published")  # noqa: B023
            await app.stop()
            app = App(_settings(database_url, listen=f"127.0.0.1:{port}"))
            await app.start()
        enough = published + 50
        await until(lambda: published >= enough, "some were published after the last restart")
        is_over.set()
        results = [result for task in tasks for result in await task]
    await app.stop()

    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("SELECT data FROM events ORDER BY ordinal")
    await connection.close()
    numbers = [number_of(row["data"]) for row in rows]
    assert len(numbers) == len(set(numbers)) == len(results) == published
    assert len({result.name for result in results}) == published
    for first in range(10):
        own = [number for number in numbers if number % 10 == first]
        assert own == sorted(own), "one task's are in its order"


def _settings(database_url: str, listen: str = "127.0.0.1:0") -> Settings:
    environ = {
        "HOOKLINE_DATABASE_URL": database_url,
        "HOOKLINE_MASTER_KEY": base64.b64encode(bytes(32)).decode(),
        "HOOKLINE_AUTH": "off",
        "HOOKLINE_LISTEN": listen,
    }
    return Settings.from_environ(environ, Role.SERVE)


def _error_content(error: object) -> tuple[object, ...]:
    assert isinstance(error, HooklineError)
    return (type(error), error.code, error.reason, error.message, error.metadata, error.violations)
