"""Fixtures of HTTP targets: transports that may reach loopback, and attempts through them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from hookline_service.domain.attempt import AttemptRecord, Outcome
from hookline_service.domain.subscription import HttpTarget, SignatureScheme
from hookline_service.targets.http.egress import EgressPolicy, parse_networks
from hookline_service.targets.http.proxy import EgressProxy
from hookline_service.targets.http.resolver import Resolver
from hookline_service.targets.http.sender import WebhookSender, prepare_target
from hookline_service.targets.http.signature import Signer, SigningSecret, generate_secret
from hookline_service.targets.http.tls import (
    ClientIdentity,
    MakeTls,
    TargetTlsContext,
    make_tls_context,
)
from hookline_service.targets.http.transport import TransportLimits, WebhookTransport
from hookline_service.targets.payload import Payload

LOOPBACK = EgressPolicy(parse_networks(["127.0.0.0/8"]))
SECRET = generate_secret(SignatureScheme.HMAC_SHA256)
WEBHOOK_ID = "evt_01jdc6cqsyfz8snxvzxvqf9h5b"
TIMESTAMP_S = 1_764_000_000
BODY = b'{"type":"order.created","timestamp":"2026-11-24T03:00:00Z","data":{"id":1}}'
PATIENCE_S = 20.0
"""How long a test waits for what must happen; a loaded machine is no failure."""
SHORT_S = 0.2
"""A deadline for attempts that can end in no other way."""


def always() -> bool:
    """Permit the send: the lease is held."""
    return True


@dataclass
class Post:
    """A caller that makes attempts through one transport."""

    transport: WebhookTransport
    sender: WebhookSender

    async def __call__(self, url: str, **options: Any) -> AttemptRecord:  # noqa: ANN401 - as below
        """Make an attempt and return its record; takes the options of `outcome`."""
        return (await self.outcome(url, **options)).record

    async def outcome(
        self,
        url: str,
        *,
        timeout_s: float = PATIENCE_S,
        body: bytes = BODY,
        failover_urls: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        may_send: Callable[[], bool] = always,
        secrets: Sequence[SigningSecret] = (SECRET,),
        extra_headers: Sequence[tuple[bytes, bytes]] | None = None,
        secret_headers: Mapping[str, str] | None = None,
        identity: ClientIdentity | None = None,
        tenant_id: str = "",
    ) -> Outcome:
        """Make an attempt."""
        target = HttpTarget(
            url=url,
            failover_urls=tuple(failover_urls),
            headers=headers or {},
            timeout_s=timeout_s,
        )
        prepared = prepare_target(
            target,
            Signer(secrets),
            user_agent="hookline/1.2.3",
            tenant_id=tenant_id,
            secret_headers=secret_headers,
            identity=identity,
        )
        async with asyncio.timeout(2 * PATIENCE_S):
            return await self.sender.send(
                prepared,
                WEBHOOK_ID,
                TIMESTAMP_S,
                Payload(body, b"application/json"),
                may_send,
                extra_headers,
            )


MakePost = Callable[..., Post]


@pytest.fixture
async def make_post() -> AsyncIterator[MakePost]:
    """Return a function that makes transports with options; each is closed after the test."""
    async with AsyncExitStack() as stack:

        def make(
            *,
            egress: EgressPolicy = LOOPBACK,
            proxy: EgressProxy | None = None,
            names: Mapping[str, Sequence[str]] | None = None,
            resolver: Resolver | None = None,
            tls_context: TargetTlsContext | None = None,
            make_tls: MakeTls = make_tls_context,
            unix_s: float = 0.0,
            **limits: float,
        ) -> Post:
            async def lookup(host: str) -> Sequence[str]:
                if host not in (names or {}):
                    raise socket.gaierror(socket.EAI_NONAME, "no such name")
                return (names or {})[host]

            transport = WebhookTransport(
                egress=egress,
                proxy=proxy,
                resolver=resolver or Resolver(lookup),
                make_tls=make_tls if tls_context is None else lambda: tls_context,
                limits=TransportLimits(**{"tick_s": 0.02, **limits}),  # type: ignore[arg-type]
            )
            stack.push_async_callback(transport.aclose)
            return Post(transport, WebhookSender(transport, unix_s=lambda: unix_s))

        yield make


@pytest.fixture
def post(make_post: MakePost) -> Post:
    """Return attempts through a transport that allows loopback addresses."""
    return make_post()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Return the certificate authority that the tests' transports trust."""
    return trustme.CA()


@pytest.fixture(scope="session")
def authority_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the authority's certificate, as a setting would name it."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def trusting(authority_file: Path) -> TargetTlsContext:
    """Return the service's TLS context with the tests' authority added to the system's."""
    return make_tls_context(authority_file)


def server_tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """Return the TLS context of a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Return a port of 127.0.0.1 that refuses connections: bound here, but not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Return a port of 127.0.0.1 that drops SYNs because its backlog is full."""
    with socket.socket() as server, ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]
