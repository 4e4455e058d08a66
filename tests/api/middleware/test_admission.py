"""Limits of admission over a real channel: refusals name the setting and the retry delay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest, StreamPublishEventsRequest
from hookline_service.api.middleware.admission import WAITING_LISTS_FACTOR, ListTurns
from hookline_service.domain.errors import Reason, ResourceExhaustedError
from hookline_service.domain.limits import Limits
from tests.api.conftest import Api, serving
from tests.api.identities import HeaderSource, caller
from tests.api.publishing import order
from tests.api.refusals import Refused, refusal
from tests.waiting import until

BOSS, CLERK = (("caller", "boss"),), (("caller", "clerk"),)
Metadata = tuple[tuple[str, str], ...]


def request_of(data_bytes: int = 0, tenant: str = "acme") -> PublishEventsRequest:
    event = Event(type="order.created", binary_data=bytes(data_bytes)) if data_bytes else order()
    return PublishEventsRequest(tenant=f"tenants/{tenant}", events=[event])


class LimitedServers:
    """Servers with limits chosen by a test, and two authenticated callers."""

    def __init__(self, url: str) -> None:
        self._url = url

    def serving(self, **changes: int) -> Any:  # noqa: ANN401 - a context of `serving`
        source = HeaderSource(
            boss=caller(), clerk=replace(caller(tenant="acme"), principal="clerk")
        )
        return serving(self._url, limits=Limits(**changes), identities=[source])


@pytest.fixture
def servers(database_url: str) -> LimitedServers:
    return LimitedServers(database_url)


async def publish(
    api: Api, data_bytes: int = 0, metadata: Metadata = BOSS, tenant: str = "acme"
) -> Any:  # noqa: ANN401 - an answer
    return await api.events.PublishEvents(
        request_of(data_bytes, tenant), metadata=metadata, timeout=20
    )


async def first_refusal(call: Callable[[], Any], tries: int = 20) -> Refused:
    """Call until that is refused."""

    async def calls() -> None:
        for _ in range(tries):
            await call()

    return await refusal(calls())


@pytest.mark.parametrize(
    "setting, changes, data_bytes, reason, subject",
    [
        ("MAX_METADATA_BYTES", {"max_metadata_bytes": 1_024}, 0, "LIMIT_EXCEEDED", None),
        ("MAX_MESSAGE_BYTES", {"max_message_bytes": 65_536}, 70_000, "LIMIT_EXCEEDED", None),
        (
            "MAX_CALLER_CALLS_PER_S",
            {"max_caller_calls_per_s": 2},
            0,
            "QUOTA_EXCEEDED",
            "some-caller",
        ),
        (
            "MAX_CALLER_BYTES_PER_S",
            {"max_caller_bytes_per_s": 1_024},
            5_000,
            "QUOTA_EXCEEDED",
            "some-caller",
        ),
        (
            "MAX_TENANT_CALLS_PER_S",
            {"max_tenant_calls_per_s": 2},
            0,
            "QUOTA_EXCEEDED",
            "tenants/acme",
        ),
        (
            "MAX_TENANT_BYTES_PER_S",
            {"max_tenant_bytes_per_s": 1_024},
            5_000,
            "QUOTA_EXCEEDED",
            "tenants/acme",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("MAX") else "",
)
async def test_a_refusal_names_its_limit_and_when_to_retry(
    servers: LimitedServers,
    setting: str,
    changes: dict[str, int],
    data_bytes: int,
    reason: str,
    subject: str | None,
) -> None:
    metadata = BOSS if setting != "MAX_METADATA_BYTES" else (*BOSS, ("x-large", "y" * 1_000))
    async with servers.serving(**changes) as api:
        await api.rows.tenant("acme")
        answer = await first_refusal(lambda: publish(api, data_bytes, metadata))
    assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
    assert answer.quota == [f"HOOKLINE_{setting}"]
    assert answer.metadata["limit"] == f"HOOKLINE_{setting}"
    assert answer.metadata["maximum"] == str(next(iter(changes.values())))
    assert answer.metadata.get("subject") == subject
    if reason == "LIMIT_EXCEEDED":
        assert (answer.retry_s, answer.pushback_ms) == (None, "-1"), "it will never pass"
    else:
        assert answer.retry_s
        assert answer.pushback_ms == str(round(answer.retry_s * 1_000))


async def test_refusals_below_the_limits_of_the_core_have_details(servers: LimitedServers) -> None:
    """The core refuses at random above its soft limit, and without details above its hard one."""
    async with servers.serving(max_metadata_bytes=4_096, max_message_bytes=65_536) as api:
        for size in (4_000, 8_000, 16_000, 19_000):
            answer = await refusal(publish(api, metadata=(*BOSS, ("x-large", "y" * size))))
            assert answer.metadata["limit"] == "HOOKLINE_MAX_METADATA_BYTES", size
        for size in (66_000, 200_000, 300_000):
            answer = await refusal(publish(api, size))
            assert answer.metadata["limit"] == "HOOKLINE_MAX_MESSAGE_BYTES", size


async def test_unauthenticated_calls_are_not_counted_against_any_caller(
    servers: LimitedServers,
) -> None:
    async with servers.serving(max_caller_calls_per_s=1, max_message_bytes=65_536) as api:
        for _ in range(5):
            answer = await refusal(publish(api, 70_000, metadata=()))
            assert answer.code is grpc.StatusCode.UNAUTHENTICATED
        await api.rows.tenant("acme")
        await publish(api)


async def test_each_caller_and_each_tenant_has_its_own_rate(servers: LimitedServers) -> None:
    async with servers.serving(max_caller_calls_per_s=3, max_tenant_calls_per_s=5) as api:
        for tenant in ("acme", "other"):
            await api.rows.tenant(tenant)
        assert (await first_refusal(lambda: publish(api))).metadata["subject"] == "some-caller"
        answer = await first_refusal(lambda: publish(api, metadata=CLERK))
        assert answer.metadata["subject"] in {"clerk", "tenants/acme"}


async def test_anonymous_callers_are_bounded_by_their_tenants_rates(
    database_url: str,
) -> None:
    limits = Limits(max_caller_calls_per_s=1, max_tenant_calls_per_s=10)
    async with serving(database_url, limits=limits) as api:
        await api.rows.tenant("acme")
        answer = await first_refusal(lambda: publish(api, metadata=()), tries=200)
    assert answer.metadata["limit"] == "HOOKLINE_MAX_TENANT_CALLS_PER_S"


async def test_a_stream_beyond_its_rate_is_delayed_and_not_refused(servers: LimitedServers) -> None:
    async with servers.serving(max_caller_calls_per_s=20) as api:
        await api.rows.tenant("acme")
        call = api.events.StreamPublishEvents(metadata=BOSS)
        for number in range(1, 31):
            await call.write(
                StreamPublishEventsRequest(sequence=number, tenant="tenants/acme", events=[order()])
            )
        await call.done_writing()
        answers = [answer async for answer in call]
    assert [answer.sequence for answer in answers] == list(range(1, 31))
    assert all(answer.HasField("published") for answer in answers)


@pytest.mark.parametrize("limit", ["max_caller_bytes_per_s", "max_tenant_bytes_per_s"])
async def test_messages_of_streams_count_against_rates_like_calls(
    servers: LimitedServers, limit: str
) -> None:
    async with servers.serving(**{limit: 1_024}) as api:
        await api.rows.tenant("acme")
        call = api.events.StreamPublishEvents(metadata=BOSS)
        request = StreamPublishEventsRequest(sequence=1, tenant="tenants/acme")
        request.events.append(Event(type="a.b", binary_data=bytes(200_000)))
        await call.write(request)
        assert (await call.read()).HasField("published")
        answer = await refusal(publish(api))
        assert answer.metadata["limit"] == f"HOOKLINE_{limit.upper()}"
        call.cancel()


async def test_an_invalid_tenant_name_gets_no_token_bucket(servers: LimitedServers) -> None:
    """Ten thousand of them would be as long as messages."""
    async with servers.serving(max_tenant_bytes_per_s=1_024) as api:
        for _ in range(3):
            answer = await refusal(publish(api, tenant="x" * 5_000))
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_delayed_stream_ends_when_the_node_stops(servers: LimitedServers) -> None:
    async with servers.serving(max_caller_bytes_per_s=1_024) as api:
        await api.rows.tenant("acme")
        call = api.events.StreamPublishEvents(metadata=BOSS)
        for number in range(1, 3):  # the first one's debt is paid after minutes
            request = StreamPublishEventsRequest(sequence=number, tenant="tenants/acme")
            request.events.append(Event(type="a.b", binary_data=bytes(200_000)))
            await call.write(request)
        assert (await call.read()).sequence == 1
        stopping = asyncio.create_task(api.server.stop(300))  # it does not wait for the grace
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(20):
                await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await stopping


async def test_a_silent_connection_is_closed(servers: LimitedServers) -> None:
    async with servers.serving(handshake_timeout_s=1) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        async with asyncio.timeout(20):
            await reader.read()  # to its end; before that the server sends its settings
        writer.close()


HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What a client of HTTP/2 begins with (RFC 9113 section 3.4): an empty SETTINGS frame."""


async def test_a_connection_without_a_call_is_closed(servers: LimitedServers) -> None:
    async with servers.serving(max_connection_idle_s=1) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(HELLO)
        async with asyncio.timeout(20):
            assert b"connection idle" in await reader.read()
        writer.close()


async def test_connections_are_bounded(servers: LimitedServers) -> None:
    """They are opened before any caller is authenticated, and each takes a descriptor."""
    async with servers.serving(max_connections=3, handshake_timeout_s=120) as api:
        await api.rows.tenant("acme")
        await publish(api)
        opened = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(2)]
        for reader, writer in opened:
            writer.write(HELLO)
            await reader.readexactly(9)  # its settings: it is one of the three
        reader, refused = await asyncio.open_connection("127.0.0.1", api.port)
        refused.write(HELLO)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        await publish(api)
        for writer in (refused, *(writer for _, writer in opened)):
            writer.close()


async def test_an_old_connection_ends_and_the_next_call_reconnects(
    servers: LimitedServers,
) -> None:
    async with servers.serving(max_connection_age_s=1, connection_grace_s=1) as api:
        await api.rows.tenant("acme")
        call = api.events.StreamPublishEvents(metadata=BOSS)
        await call.write(
            StreamPublishEventsRequest(sequence=1, tenant="tenants/acme", events=[order()])
        )
        assert (await call.read()).HasField("published")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await publish(api)


async def test_frequent_pings_end_the_connection(servers: LimitedServers) -> None:
    async with servers.serving(min_ping_interval_s=3_600) as api:
        options = [
            ("grpc.keepalive_time_ms", 20),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{api.port}", options) as channel:
            stream: Any = channel.stream_stream("/hookline.v1.EventService/StreamPublishEvents")
            call = stream(metadata=BOSS)

            def is_ended() -> bool:
                return bool(call.done())

            await until(is_ended, "the connection is ended for its pings")
            assert "many pings" in (await call.details())


# -------------------------------------------------------------------------------- turns of lists


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
