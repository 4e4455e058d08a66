"""Authentication: the caller of each call is identified first, and that of a stream repeatedly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hookline.v1.event_service_pb2 import ListEventsRequest, StreamPublishEventsRequest
from hookline.v1.event_service_pb2_grpc import EventServiceStub
from hookline.v1.tenant_service_pb2 import GetTenantRequest
from hookline.v1.tenant_service_pb2_grpc import TenantServiceStub
from hookline_service.api.middleware.authentication import Identities, bearer_token_in
from hookline_service.api.middleware.methods import METHODS
from hookline_service.domain.caller import Scope, current_caller
from hookline_service.domain.errors import UnauthenticatedError
from hookline_service.domain.limits import Limits
from tests.api.conftest import Api, serving
from tests.api.identities import HeaderSource, RecordingTenants, caller
from tests.api.publishing import order
from tests.api.refusals import Refused, refusal
from tests.api.rpcs import CONTRACT
from tests.waiting import until

PATHS = [f"/{name}" for name in CONTRACT]
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
UNAUTHENTICATED = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
BOSS = (("caller", "boss"),)
CHECK = "/grpc.health.v1.Health/Check"
INVALID_CALLER = (("caller", "unknown"),)
Metadata = tuple[tuple[str, str], ...]


@pytest.fixture
def source() -> HeaderSource:
    return HeaderSource(boss=caller(), reader=caller(Scope.OPERATE, tenant="acme"))


@pytest.fixture
def asking() -> RecordingTenants:
    return RecordingTenants()


@pytest.fixture
async def api(
    database_url: str, source: HeaderSource, asking: RecordingTenants
) -> AsyncIterator[Api]:
    async with serving(database_url, identities=[source], tenants=asking) as api:
        await api.rows.tenant("acme")
        yield api


async def send(api: Api, method: str, metadata: Metadata, data: bytes = b"") -> Refused:
    """A call that must be refused; any method takes the bytes of one message, whatever it is."""
    call: Any = api.channel.unary_unary(method)
    return await refusal(call(data, metadata=metadata, timeout=20))


@pytest.mark.parametrize("method", [*PATHS, REFLECT, "/hookline.v1.X/Y", "/", "/a/b/c"])
async def test_an_unauthenticated_call_does_not_disclose_which_methods_exist(
    api: Api, method: str
) -> None:
    for metadata in ((), INVALID_CALLER):
        for data in (b"", b"\xff\xff\xff"):
            answer = await send(api, method, metadata, data)
            assert (answer.code, answer.reason) == UNAUTHENTICATED
            assert answer == await send(api, "/hookline.v1.TenantService/GetTenant", ())


async def test_health_is_answered_without_authentication(api: Api, source: HeaderSource) -> None:
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    for metadata in ((), INVALID_CALLER, BOSS):
        await stub.Check(health_pb2.HealthCheckRequest(), metadata=metadata)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    assert source.asked == []


async def test_unauthenticated_calls_take_no_place_of_authenticated_ones(
    database_url: str, source: HeaderSource
) -> None:
    async with serving(database_url, identities=[source], max_calls=2) as api:
        health: Any = health_pb2_grpc.HealthStub(api.channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            await watch.read()
        refused = health.Watch(health_pb2.HealthCheckRequest())
        answer = await refusal(refused.read())
        assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        await health.Check(
            health_pb2.HealthCheckRequest()
        )  # a node that fails its probe is restarted
        await api.events.ListEvents(ListEventsRequest(tenant="tenants/-"), metadata=BOSS)
        for watch in watches:
            watch.cancel()

        async def has_capacity() -> bool:
            watch = health.Watch(health_pb2.HealthCheckRequest())
            try:
                await watch.read()
            except grpc.aio.AioRpcError:
                return False
            watch.cancel()
            return True

        await until(has_capacity, "an ended call is no longer counted")
        for _ in range(5):  # nor is a refused one
            await send(api, "/hookline.v1.TenantService/GetTenant", ())
        await api.events.ListEvents(ListEventsRequest(tenant="tenants/-"), metadata=BOSS)


@pytest.mark.parametrize("method", [*PATHS, REFLECT, "/hookline.v1.X/Y"])
async def test_no_request_is_read_before_its_caller_is_authenticated(api: Api, method: str) -> None:
    """Else any client could exhaust memory with messages that never end."""
    for metadata in ((), INVALID_CALLER):
        call: Any = api.channel.stream_unary(method)
        answer = await refusal(call(metadata=metadata, timeout=20))  # nothing was written yet
        assert (answer.code, answer.reason) == UNAUTHENTICATED


async def test_the_oldest_unauthenticated_request_is_dropped_and_probes_are_answered(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = api.server._guard._admission._open_slots  # noqa: SLF001
    monkeypatch.setattr(slots, "_timeout_s", 3_600.0)
    check: Any = api.channel.stream_unary(CHECK)
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    begun = [check(timeout=20) for _ in range(Limits().max_open_requests_read + 1)]
    refusals = [asyncio.create_task(refusal(call)) for call in begun]

    await health.Check(health_pb2.HealthCheckRequest())
    given_way, awaited = await asyncio.wait(refusals, return_when=asyncio.FIRST_COMPLETED)

    answer = given_way.pop().result()
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
    for call in begun:
        call.cancel()
    await asyncio.gather(*awaited, return_exceptions=True)


async def test_an_unauthenticated_request_is_awaited_briefly(api: Api) -> None:
    answer = await refusal(api.channel.stream_unary(CHECK)(timeout=20))

    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")


async def test_a_call_without_a_request_is_malformed(api: Api) -> None:
    call: Any = api.channel.stream_unary("/hookline.v1.TenantService/GetTenant")
    answer = await refusal(call(iter(()), metadata=BOSS, timeout=20))
    assert (answer.code, answer.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_MALFORMED",
    )


async def test_an_authenticated_call_of_an_unknown_method_is_unimplemented(api: Api) -> None:
    for method in ("/hookline.v1.X/Y", "/"):
        answer = await send(api, method, BOSS)
        assert (answer.code, answer.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


async def test_a_refusal_names_the_missing_scope_before_the_request_is_read(api: Api) -> None:
    for data in (b"", b"\xff\xff\xff"):
        answer = await send(
            api, "/hookline.v1.EventService/PublishEvents", (("caller", "reader"),), data
        )
        assert (answer.code, answer.reason) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "PERMISSION_DENIED",
        )
        assert answer.metadata == {"scope": "PUBLISH"}


async def test_a_method_without_an_entry_in_the_registry_is_unknown(
    database_url: str, source: HeaderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "hookline.v1.TenantService/GetTenant"
    monkeypatch.setattr(
        "hookline_service.api.middleware.interceptors.METHODS",
        {name: entry for name, entry in METHODS.items() if name != method},
    )
    async with serving(database_url, identities=[source]) as api:
        answer = await send(api, f"/{method}", BOSS)
        assert answer.code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_call_runs_for_its_caller(api: Api, asking: RecordingTenants) -> None:
    await TenantServiceStub(api.channel).GetTenant(GetTenantRequest(), metadata=BOSS)
    [found] = asking.callers
    assert found.principal == "some-caller"
    assert found.method == "/hookline.v1.TenantService/GetTenant"
    assert found.remote_address.startswith("ipv4:127.0.0.1:")
    assert current_caller().principal == "hookline"


async def test_a_caller_that_cannot_be_authenticated_at_present_is_unavailable(
    api: Api, source: HeaderSource
) -> None:
    source.is_away = True
    answer = await send(api, "/hookline.v1.TenantService/GetTenant", BOSS)
    assert (answer.code, answer.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "DATABASE_UNAVAILABLE",
    )


# ----------------------------------------------------------------------------------- streams


class Publishing:
    """A publishing stream of the boss's."""

    def __init__(self, api: Api) -> None:
        self.call: Any = EventServiceStub(api.channel).StreamPublishEvents(metadata=BOSS)

    async def send(self, sequence: int) -> None:
        await self.call.write(
            StreamPublishEventsRequest(sequence=sequence, tenant="tenants/acme", events=[order()])
        )

    async def ends(self) -> Refused:
        async def read_on() -> None:
            while await self.call.read() is not grpc.aio.EOF:
                pass
            if await self.call.code() is not grpc.StatusCode.OK:
                raise grpc.aio.AioRpcError(
                    await self.call.code(),
                    await self.call.initial_metadata(),
                    await self.call.trailing_metadata(),
                    await self.call.details(),
                )

        async with asyncio.timeout(20):
            return await refusal(read_on())


async def test_a_silent_stream_ends_once_its_credentials_are_invalid(
    api: Api, source: HeaderSource
) -> None:
    stream = Publishing(api)
    await stream.send(1)
    assert (await stream.call.read()).published.results
    del source.callers["boss"]
    answer = await stream.ends()
    assert (answer.code, answer.reason) == UNAUTHENTICATED


async def test_a_silent_stream_ends_once_its_caller_lacks_the_scope(
    api: Api, source: HeaderSource
) -> None:
    """The grants of certificates, and the scopes of an issuer's next token, may be fewer."""
    stream = Publishing(api)
    await stream.send(1)
    assert (await stream.call.read()).published.results
    source.callers["boss"] = caller(Scope.OPERATE)
    answer = await stream.ends()
    assert (answer.code, answer.metadata["scope"]) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "PUBLISH",
    )


async def test_a_message_is_refused_once_its_callers_credentials_are_invalid(
    api: Api, source: HeaderSource
) -> None:
    stream = Publishing(api)
    await stream.send(1)
    assert (await stream.call.read()).published.results
    del source.callers["boss"]
    await stream.send(2)
    assert (await stream.ends()).code is grpc.StatusCode.UNAUTHENTICATED
    assert len(await api.rig.database.fetch("SELECT FROM events")) == 1


async def test_a_reflection_stream_ends_once_its_credentials_are_invalid(
    api: Api, source: HeaderSource
) -> None:
    call: Any = api.channel.stream_stream(REFLECT)(metadata=BOSS)
    await call.write(b"")
    await call.read()
    del source.callers["boss"]
    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_survives_an_unavailable_identity_source(
    api: Api, source: HeaderSource
) -> None:
    stream = Publishing(api)
    await stream.send(1)
    assert (await stream.call.read()).published.results
    source.is_away, before = True, len(source.asked)
    await until(lambda: len(source.asked) >= before + 2, "it is asked twice")
    source.is_away = False
    await stream.send(2)
    assert (await stream.call.read()).published.results
    stream.call.cancel()


# ----------------------------------------------------------------------------------- sources


async def test_the_first_source_that_authenticates_or_refuses_decides() -> None:
    first, second = (
        HeaderSource(a=caller(Scope.PUBLISH)),
        HeaderSource(a=caller(Scope.ADMIN), b=caller()),
    )
    both = Identities([first, second])
    assert (await both.authenticate((("caller", "a"),), dict, "")).scopes == {Scope.PUBLISH}
    with pytest.raises(UnauthenticatedError):
        await both.authenticate((("caller", "b"),), dict, "")
    assert len(second.asked) == 0
    for sources in ([], [first, second]):
        with pytest.raises(UnauthenticatedError):
            await Identities(sources).authenticate((), dict, "")


@pytest.mark.parametrize(
    "value,token",
    [
        ("Bearer hk_1_2", "hk_1_2"),
        ("bearer hk_1_2", "hk_1_2"),
        ("BEARER  hk_1_2 ", "hk_1_2"),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic aGs6", None),
        ("hk_1_2", None),
        ("", None),
    ],
)
def test_bearer_tokens_are_parsed(value: str, token: str | None) -> None:
    assert bearer_token_in((("user-agent", "x"), ("authorization", value))) == token


def test_two_authorization_headers_are_refused() -> None:
    assert bearer_token_in(()) is None
    with pytest.raises(UnauthenticatedError):
        bearer_token_in((("authorization", "Bearer a"), ("authorization", "Bearer a")))
