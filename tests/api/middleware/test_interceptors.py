"""The interceptor: every end of a servicer is answered, and the server goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

import grpc
import pytest

from hookline.v1.subscription_service_pb2_grpc import SubscriptionServiceServicer
from hookline.v1.tenant_service_pb2 import (
    GetTenantRequest,
    GetTenantResponse,
    ListTenantsRequest,
    ListTenantsResponse,
)
from hookline.v1.tenant_service_pb2_grpc import TenantServiceServicer, TenantServiceStub
from hookline_service.api.middleware.methods import METHODS, Effect
from hookline_service.domain.errors import NotFoundError, Reason
from hookline_service.store.database import ContentionError, OutcomeUnknownError
from tests.api.conftest import Api, refusing, serving
from tests.api.refusals import refusal
from tests.api.rpcs import CONTRACT, opened_by, rpc_of
from tests.waiting import until

SECRET = "hunter2"
Context = grpc.aio.ServicerContext[Any, Any]


class Troubled(refusing(TenantServiceServicer).__class__):  # type: ignore[misc]
    """GetTenant fails as its request's name says; ListTenants waits for the gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.waiting = 0
        self.asked = 0
        """How often ListTenants was begun."""

    async def GetTenant(self, request: GetTenantRequest, context: Context) -> GetTenantResponse:
        match request.name:
            case "not found":
                raise NotFoundError("there is none", Reason.TENANT_NOT_FOUND)
            case "contention":
                raise ContentionError(SECRET)
            case "lost":
                raise OutcomeUnknownError(SECRET)
            case "bug":
                raise RuntimeError(SECRET)
            case "base exception":
                raise GeneratorExit(SECRET)
            case "cancelled":
                raise asyncio.CancelledError
            case "cancelled below":
                below = asyncio.get_running_loop().create_future()
                below.cancel()
                await below
            case "cancelled task":
                task = asyncio.create_task(asyncio.Event().wait())
                task.cancel()
                await asyncio.shield(task)
            case "its own abort":
                await context.abort(grpc.StatusCode.DATA_LOSS, "as it said")
            case _:
                pass
        return GetTenantResponse()

    async def ListTenants(
        self, request: ListTenantsRequest, context: Context
    ) -> ListTenantsResponse:
        del request, context
        self.asked += 1
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        return ListTenantsResponse()


@pytest.fixture
def troubled() -> Troubled:
    return Troubled()


@pytest.fixture
async def api(database_url: str, troubled: Troubled) -> AsyncIterator[Api]:
    async with serving(database_url, tenants=troubled) as api:
        yield api


def stub(api: Api) -> TenantServiceStub:
    return TenantServiceStub(api.channel)


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "name,code,reason",
    [
        ("not found", grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND"),
        ("contention", grpc.StatusCode.ABORTED, "CONCURRENT_CHANGE"),
        ("lost", UNAVAILABLE, "DATABASE_UNAVAILABLE"),
        ("bug", grpc.StatusCode.INTERNAL, "INTERNAL"),
        ("base exception", grpc.StatusCode.INTERNAL, "INTERNAL"),
        ("cancelled", UNAVAILABLE, "SHUTTING_DOWN"),
        ("cancelled below", UNAVAILABLE, "SHUTTING_DOWN"),
        ("cancelled task", UNAVAILABLE, "SHUTTING_DOWN"),
        ("its own abort", grpc.StatusCode.DATA_LOSS, ""),
    ],
)
async def test_every_exception_of_a_servicer_is_answered(
    api: Api, name: str, code: grpc.StatusCode, reason: str
) -> None:
    answer = await refusal(stub(api).GetTenant(GetTenantRequest(name=name), timeout=10))
    assert (answer.code, answer.reason) == (code, reason)
    assert SECRET not in answer.message
    assert "Error" not in answer.message
    assert await stub(api).GetTenant(GetTenantRequest(name="fine")) == GetTenantResponse()
    method = "hookline.v1.TenantService/GetTenant"
    assert api.calls.ended == [(method, code), (method, grpc.StatusCode.OK)]


async def lose(*_: object) -> NoReturn:
    raise OutcomeUnknownError(SECRET)


async def test_lost_result_is_unavailable_only_where_repeating_does_no_harm(
    database_url: str,
) -> None:
    """Client libraries repeat a call by themselves on UNAVAILABLE."""
    names = [name for name in CONTRACT if ".SubscriptionService/" in name]
    kind = type("Losing", (SubscriptionServiceServicer,), dict.fromkeys(map(rpc_of, names), lose))
    async with serving(database_url, subscriptions=kind()) as api:
        for name in names:
            answer = await refusal(opened_by(api.channel, METHODS[name])(b""))
            is_unsafe = METHODS[name].effect is Effect.UNSAFE_TO_REPEAT
            code = grpc.StatusCode.UNKNOWN if is_unsafe else UNAVAILABLE
            assert (answer.code, answer.reason) == (code, "DATABASE_UNAVAILABLE"), name


def test_a_rotation_is_unsafe_to_repeat() -> None:
    """Repeated, it ends the secret that receivers still verify with: at most two are live."""
    rotation = METHODS["hookline.v1.SubscriptionService/RotateSigningSecret"]
    assert rotation.effect is Effect.UNSAFE_TO_REPEAT


async def test_a_disconnected_client_ends_its_call_alone(api: Api, troubled: Troubled) -> None:
    call = stub(api).ListTenants(ListTenantsRequest())
    await until(lambda: troubled.waiting == 1, "the call waits")
    call.cancel()
    await until(lambda: troubled.waiting == 0, "the call is given up")
    await until(
        lambda: (
            api.calls.ended
            == [("hookline.v1.TenantService/ListTenants", grpc.StatusCode.CANCELLED)]
        ),
        "the end is observed",
    )
    await stub(api).GetTenant(GetTenantRequest())


async def test_a_deadline_ends_a_call_that_waits(api: Api, troubled: Troubled) -> None:
    answer = await refusal(stub(api).ListTenants(ListTenantsRequest(), timeout=0.2))
    assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: troubled.waiting == 0, "the call is given up")
    await stub(api).GetTenant(GetTenantRequest())


async def test_a_passed_deadline_is_answered(api: Api) -> None:
    for timeout_s in (1e-6, -1.0):
        answer = await refusal(stub(api).ListTenants(ListTenantsRequest(), timeout=timeout_s))
        assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await stub(api).GetTenant(GetTenantRequest())


async def test_a_call_whose_deadline_passed_before_it_is_read_is_not_begun(
    api: Api, troubled: Troubled
) -> None:
    is_waited_for = threading.Event()

    def messages() -> Iterator[bytes]:
        is_waited_for.wait(timeout=20)
        yield b""

    with (
        grpc.insecure_channel(f"127.0.0.1:{api.port}") as channel,
        ThreadPoolExecutor() as elsewhere,
    ):
        calls: list[Any] = [
            channel.stream_unary("/hookline.v1.TenantService/ListTenants"),
            channel.unary_unary("/hookline.v1.TenantService/GetTenant"),
        ]
        late = elsewhere.submit(calls[0], messages(), timeout=1)
        await until(lambda: "_schedule_rpc_coro" in _running(), "the node waits for the message")
        is_waited_for.set()
        # From here on the node's loop stands still; gRPC's own threads do not. By the server's
        # clock a deadline ends a little later: the second call waits for that of the first.
        for call in (late.result, partial(calls[1], b"", timeout=0.5)):
            with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
                call()
    await until(lambda: len(api.calls.ended) > 0, "the node comes to it")
    assert api.calls.ended[0][1] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert troubled.asked == 0


def _running() -> set[str]:
    """What the tasks of the loop do."""
    return {str(getattr(task.get_coro(), "__name__", "")) for task in asyncio.all_tasks()}


async def test_calls_beyond_the_limit_are_refused_with_a_retry_delay(
    database_url: str, troubled: Troubled
) -> None:
    async with serving(database_url, tenants=troubled, max_calls=2) as api:
        calls = [asyncio.ensure_future(wait(api)) for _ in range(2)]
        await until(lambda: troubled.waiting == 2, "both calls wait")
        answer = await refusal(stub(api).GetTenant(GetTenantRequest()))
        assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert answer.metadata == {"limit": "HOOKLINE_MAX_CALLS", "maximum": "2"}
        assert (answer.retry_s, answer.pushback_ms) == (1.0, "1000")
        assert answer.quota == ["HOOKLINE_MAX_CALLS"]
        troubled.gate.set()
        await asyncio.gather(*calls)
        await stub(api).GetTenant(GetTenantRequest())


async def wait(api: Api) -> None:
    await stub(api).ListTenants(ListTenantsRequest())


async def test_a_stop_lets_calls_end_within_its_grace(api: Api, troubled: Troubled) -> None:
    call = asyncio.ensure_future(wait(api))
    await until(lambda: troubled.waiting == 1, "the call waits")
    stopping = asyncio.ensure_future(api.server.stop(20))
    await asyncio.sleep(0)
    troubled.gate.set()
    await call
    await stopping


async def test_a_stop_without_grace_ends_calls_with_an_answer(api: Api, troubled: Troubled) -> None:
    waiting = asyncio.ensure_future(refusal(wait(api)))
    await until(lambda: troubled.waiting == 1, "the call waits")
    await api.server.stop(0)
    assert (await waiting).code is UNAVAILABLE
