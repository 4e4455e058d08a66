"""TLS of the server over real connections: exchanged while it serves, with and without clients'."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hookline_service.api.middleware.authentication import Anonymous
from hookline_service.api.server import ApiServer
from hookline_service.api.tls import server_credentials
from hookline_service.domain.limits import Limits
from hookline_service.identity.server_certificate import (
    CertificateFiles,
    ServerCertificate,
    read_server_certificate,
)
from tests.api.conftest import CLIENT_OPTIONS, Api, servicers_of
from tests.certificates import Authority

Current = Callable[[], ServerCertificate]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def issued(authority: Authority, client_ca: Path | None = None) -> ServerCertificate:
    """A fresh certificate for this machine."""
    return read_server_certificate(
        CertificateFiles(*authority.issue("server", "127.0.0.1"), client_ca)
    )


@asynccontextmanager
async def serving(api: Api, current: Current) -> AsyncIterator[int]:
    """A server with TLS; its port."""
    server = ApiServer(
        servicers_of(api.rig),
        address="127.0.0.1:0",
        limits=Limits(),
        identities=[Anonymous()],
        credentials=server_credentials(current),
    )
    port = await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def health(channel: grpc.aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its stubs have no methods
    await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)


def channel_to(port: int, *files: bytes) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(
        f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*files), CLIENT_OPTIONS
    )


async def shown(port: int, authority: Authority) -> int:
    """The serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


def serial(certificate: ServerCertificate) -> int:
    return x509.load_pem_x509_certificate(certificate.chain_pem).serial_number


async def test_new_connections_get_the_new_certificate_and_open_ones_stay(
    api: Api, authority: Authority
) -> None:
    counts = [issued(authority)]
    async with serving(api, lambda: counts[-1]) as port, channel_to(port, authority.pem) as old:
        await health(old)
        assert await shown(port, authority) == serial(counts[0])
        counts.append(issued(authority))
        assert serial(counts[0]) != serial(counts[1])
        assert await shown(port, authority) == serial(counts[1])
        await health(old)


async def test_the_certificate_is_returned_only_when_it_has_changed(
    api: Api, authority: Authority
) -> None:
    asked = 0
    certificate = issued(authority)

    def current() -> ServerCertificate:
        nonlocal asked
        asked += 1
        return certificate

    async with serving(api, current) as port:
        before = asked
        for _ in range(3):
            await shown(port, authority)
        assert asked == before + 3, "each handshake asks"


async def test_a_client_without_a_required_certificate_is_refused(
    api: Api, authority: Authority, tmp_path: Path
) -> None:
    certificate = issued(authority, authority.file)
    foreign = Authority(tmp_path, "foreign").issue("foreign", "shop.internal")
    friend = authority.issue("client", "shop.internal")
    async with serving(api, lambda: certificate) as port:
        async with channel_to(
            port, authority.pem, friend[1].read_bytes(), friend[0].read_bytes()
        ) as channel:
            await health(channel)
        for files in ((), (foreign[1].read_bytes(), foreign[0].read_bytes())):
            async with channel_to(port, authority.pem, *files) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await health(channel)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_client_authority_is_reloaded_too(
    api: Api, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    client = [path.read_bytes() for path in reversed(other.issue("client", "shop.internal"))]
    counts = [issued(authority, authority.file)]
    async with serving(api, lambda: counts[-1]) as port:
        async with channel_to(port, authority.pem, *client) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await health(channel)
        counts.append(issued(authority, other.file))
        async with channel_to(port, authority.pem, *client) as channel:
            await health(channel)


async def test_plaintext_is_refused_and_the_server_keeps_serving(
    api: Api, authority: Authority
) -> None:
    certificate = issued(authority)
    async with serving(api, lambda: certificate) as port:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", CLIENT_OPTIONS) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with channel_to(port, authority.pem) as channel:
            await health(channel)
