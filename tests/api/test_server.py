"""The whole server: its services, its health, and RPCs that are not implemented."""

from __future__ import annotations

import contextlib
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hookline_service.api.middleware.authentication import Anonymous
from hookline_service.api.middleware.methods import METHODS
from hookline_service.api.server import CONTRACT_SERVICES, ApiServer, CannotListenError
from hookline_service.domain.limits import Limits
from tests.api.conftest import Api, servicers_of
from tests.api.refusals import refusal
from tests.api.rpcs import CONTRACT, UNBUILT, opened_by, request_of, rpc_of
from tests.waiting import until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LISTING: Any = health_pb2  # its types have no messages of List


def health_of(channel: grpc.aio.Channel) -> Any:  # noqa: ANN401 (its stubs have no methods)
    return health_pb2_grpc.HealthStub(channel)


def server_at(api: Api, address: str, *, share_port: bool = False) -> ApiServer:
    return ApiServer(
        servicers_of(api.rig),
        address=address,
        limits=Limits(),
        identities=[Anonymous()],
        share_port=share_port,
    )


async def test_health_reports_the_server_and_each_service(api: Api) -> None:
    for status in (SERVING, NOT_SERVING, SERVING):
        await api.server.set_serving(status == SERVING)
        for service in ("", *CONTRACT_SERVICES):
            answer = await health_of(api.channel).Check(
                health_pb2.HealthCheckRequest(service=service)
            )
            assert answer.status == status


async def test_health_of_an_unknown_service_is_not_found(api: Api) -> None:
    answer = await refusal(health_of(api.channel).Check(health_pb2.HealthCheckRequest(service="x")))
    assert answer.code is grpc.StatusCode.NOT_FOUND
    # Health aborts its calls itself, so that the client may see the end before the observer does.
    await until(lambda: len(api.calls.ended) == 1, "the call has ended")
    assert api.calls.ended == [("grpc.health.v1.Health/Check", grpc.StatusCode.NOT_FOUND)]


async def test_a_change_of_health_is_sent_to_watches(api: Api) -> None:
    watch = health_of(api.channel).Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == SERVING
    await api.server.set_serving(False)
    assert (await watch.read()).status == NOT_SERVING
    watch.cancel()


async def test_health_lists_every_service(api: Api) -> None:
    listed = await health_of(api.channel).List(LISTING.HealthListRequest())
    assert {name: state.status for name, state in listed.statuses.items()} == dict.fromkeys(
        ("", *CONTRACT_SERVICES), SERVING
    )
    assert ("grpc.health.v1.Health/List", grpc.StatusCode.OK) in api.calls.ended


async def test_watch_of_an_unknown_service_reports_that_and_continues(api: Api) -> None:
    watch = health_of(api.channel).Watch(health_pb2.HealthCheckRequest(service="unknown"))
    known = health_of(api.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert (await known.read()).status == SERVING
    await api.server.set_serving(False)
    assert (await known.read()).status == NOT_SERVING
    assert not watch.done()
    watch.cancel()
    known.cancel()


async def test_a_server_is_unready_until_it_is_set_serving(api: Api) -> None:
    server = server_at(api, "127.0.0.1:0")
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = await health_of(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == NOT_SERVING
    await server.stop(0)


async def test_port_in_use_is_refused(api: Api) -> None:
    server = ApiServer(
        servicers_of(api.rig),
        address=f"127.0.0.1:{api.port}",
        limits=Limits(),
        identities=[Anonymous()],
    )
    with pytest.raises(CannotListenError, match=f"127.0.0.1:{api.port}"):
        await server.start()
    await server.stop(0)


async def test_several_processes_share_a_port_if_configured(api: Api) -> None:
    servers = [
        ApiServer(
            servicers_of(api.rig),
            address="127.0.0.1:0",
            limits=Limits(),
            identities=[Anonymous()],
            share_port=True,
        )
    ]
    port = await servers[0].start()
    servers.append(
        ApiServer(
            servicers_of(api.rig),
            address=f"127.0.0.1:{port}",
            limits=Limits(),
            identities=[Anonymous()],
            share_port=True,
        )
    )
    assert await servers[1].start() == port
    for server in servers:
        await server.stop(0)


@pytest.mark.parametrize("name", CONTRACT)
async def test_every_rpc_answers_an_empty_request(api: Api, name: str) -> None:
    """With OK, or a refusal with its reason; an RPC that is not implemented is refused as such."""
    method = METHODS[name]
    empty = request_of(method).SerializeToString()
    call = opened_by(api.channel, method)
    argument = iter([empty]) if method.takes_stream else empty

    async def finish() -> None:
        if method.answers_stream:
            async for _ in call(argument, timeout=20):
                pass
        else:
            await call(argument, timeout=20)

    rpc = rpc_of(name)
    if rpc in UNBUILT:
        answer = await refusal(finish())
        assert (answer.code, answer.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
        assert rpc in answer.message
        return
    with contextlib.suppress(grpc.aio.AioRpcError):
        await finish()
    [(ended, code)] = api.calls.ended
    assert ended == name
    assert code in {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
    }


def test_unimplemented_rpcs_exist_in_the_contract() -> None:
    assert not UNBUILT - set(map(rpc_of, CONTRACT))
