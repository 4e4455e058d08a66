"""Targets that answer as no target should: receivers of a tenant, attacking what sends to them."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hookline import HooklineClient
from hookline.errors import HooklineError
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest
from hookline.v1.subscription_service_pb2 import (
    CreateSubscriptionRequest,
    DeleteSubscriptionRequest,
)
from tests.hostile.scenario import Scenario
from tests.hostile.stage import Target
from tests.targets.http.receiver import OK, Connected, Receiver, Script, answer

TENANT = "tenants/hostile"
EVENT_TYPE = "hostile.delivery"
SUBSCRIPTIONS = 20
BATCH = 20
PUBLISH_EVERY_S = 0.05
TRICKLE_S = 0.1
LATE_S = 0.005
CHUNK = bytes(65_536)
CHAIN_LENGTH = 3
NAMES_PER_CERTIFICATE = 1_000
"""Three certificates of about 28 KB: OpenSSL reads up to 100 KB of a chain."""
HUGE_ATTRIBUTES, LARGE_ATTRIBUTES = 3_700, 560
"""Of a subject and an issuer: 90 KB, and 14 KB, just below what a handshake may have."""


@asynccontextmanager
async def subscribed(target: Target, urls: Sequence[str]) -> AsyncIterator[HooklineClient]:
    """Subscriptions of the hostile tenant, while inside; a client that may publish for it."""
    place = f"{target.host}:{target.port}"
    async with (
        HooklineClient(place, token=target.operate_token) as manager,
        HooklineClient(place, token=target.publish_token) as publisher,
    ):
        names = []
        try:
            for url in urls:
                request = CreateSubscriptionRequest(tenant=TENANT)
                request.subscription.event_types.append(EVENT_TYPE)
                request.subscription.http.url = url
                made = await manager.subscriptions.CreateSubscription(request)
                names.append(made.subscription.name)
            yield publisher
        finally:
            requests = [DeleteSubscriptionRequest(name=name) for name in names]
            await asyncio.gather(*map(manager.subscriptions.DeleteSubscription, requests))


async def publish_for_ever(publisher: HooklineClient) -> None:
    """More deliveries than are taken: what is refused is tried again."""
    events = [Event(type=EVENT_TYPE, json_data="{}") for _ in range(BATCH)]
    request = PublishEventsRequest(tenant=TENANT, events=events)
    while True:
        with suppress(HooklineError):
            await publisher.events.PublishEvents(request)
        await pause(PUBLISH_EVERY_S)


async def pause(seconds: float) -> None:
    """Wait, in a process that is ended from outside."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


async def _attack(
    target: Target,
    script: Script,
    *,
    tls: ssl.SSLContext | None = None,
    scheme: str = "",
    subscriptions: int = SUBSCRIPTIONS,
) -> None:
    async with Receiver(script, tls=tls) as receiver:
        url = receiver.url() if not scheme else receiver.url().replace("http:", f"{scheme}:", 1)
        urls = [f"{url}{number}" for number in range(subscriptions)]
        async with subscribed(target, urls) as publisher:
            await publish_for_ever(publisher)


def _answering(*pieces: bytes, every_s: float = 0.0, then: bytes = b"") -> Script:
    """Answer each request with these, one by one, and `then` again and again."""

    async def script(connected: Connected) -> None:
        while True:
            await connected.read_request()
            connected.receiver.requests.clear()
            for piece in pieces:
                await connected.write(piece)
                if every_s:
                    await pause(every_s)
            while then:
                await connected.write(then)
                await (pause(every_s) if every_s else asyncio.sleep(0))

    return script


# ------------------------------------------------------------------------------------- slowness


async def silent(target: Target) -> None:
    """Accept, read, and say nothing: a hundred subscriptions."""
    await _attack(target, _answering(then=b"", every_s=0.0), subscriptions=100)


async def trickle_head(target: Target) -> None:
    """A byte of the head now and then."""
    await _attack(target, _answering(b"HTTP/1.1 200 OK\r\nx: ", then=b"y", every_s=TRICKLE_S))


async def trickle_body(target: Target) -> None:
    """A whole head, and a byte of the body now and then."""
    head = b"HTTP/1.1 500 No\r\ncontent-length: 60000\r\n\r\n"
    await _attack(target, _answering(head, then=b"y", every_s=TRICKLE_S))


async def never_accepting(target: Target) -> None:
    """Connecting never ends: the backlog is full, so that SYNs are dropped."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        clients = [socket.socket() for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        urls = [f"http://127.0.0.1:{server.getsockname()[1]}/{n}" for n in range(100)]
        async with subscribed(target, urls) as publisher:
            await publish_for_ever(publisher)


async def tls_never_finished(target: Target) -> None:
    """The client's first message of TLS is read, and nothing is ever answered."""

    async def script(connected: Connected) -> None:
        await connected.wait_closed_by_peer()

    await _attack(target, script, scheme="https", subscriptions=100)


# ------------------------------------------------------------------------------------- size


async def endless_head(target: Target) -> None:
    """Header fields without end, as fast as they are taken."""
    await _attack(target, _answering(b"HTTP/1.1 200 OK\r\n", then=b"x-a: b\r\n" * 8_000))


async def endless_interim(target: Target) -> None:
    """Interim answers without end."""
    await _attack(target, _answering(then=b"HTTP/1.1 100 Continue\r\n\r\n" * 2_500))


async def endless_body(target: Target) -> None:
    """A body without end, as fast as it is taken."""
    head = b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n"
    await _attack(target, _answering(head, then=b"10000\r\n" + CHUNK + b"\r\n"))


async def absurd_headers(target: Target) -> None:
    """The most header fields that are read, and a field of 60 KB."""
    many = answer("500 No", b"", *(f"x-{number}: {'y' * 200}" for number in range(255)))
    one = answer("500 No", b"", f"x: {'y' * 60_000}")
    await _attack(target, _answering(many, one))


async def huge_certificates(target: Target) -> None:
    """Chains of certificates as large as OpenSSL reads them, with thousands of names."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(chain_of(CHAIN_LENGTH, NAMES_PER_CERTIFICATE))
        file.flush()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(file.name)
    await _attack(target, _answering(OK), tls=tls)


async def huge_trusted_certificates(target: Target) -> None:
    """A good certificate, 90 KB of crafted ones behind it, and never an answer."""
    await _trusted(target, HUGE_ATTRIBUTES)


async def large_trusted_certificates(target: Target) -> None:
    """The same with as much as a handshake may have, so that each connection is kept."""
    await _trusted(target, LARGE_ATTRIBUTES)


async def _trusted(target: Target, attributes: int) -> None:
    key, authority = _authority()
    own = ec.generate_private_key(ec.SECP256R1())
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    leaf = _certificate(own, key, x509.Name([]), authority.subject, (address, True))
    # Each of the least bytes that OpenSSL makes an object of its own of.
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")] * attributes)
    chain = (leaf, _certificate(own, own, name, name))
    with tempfile.NamedTemporaryFile() as file:
        file.write(_pem(own, *chain))
        file.flush()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(file.name)
    await _attack(target, _answering(then=b"", every_s=0.0), tls=tls, subscriptions=100)


def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The authority that the node trusts: the same in each process, so that none passes its key."""
    key = ec.derive_private_key(7, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hostile")])
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    return key, _certificate(key, key, name, name, (constraints, True))


def trusted() -> dict[str, bytes]:
    """The settings of a node that trusts it."""
    _, certificate = _authority()
    return {"HOOKLINE_EGRESS_CA_FILE": certificate.public_bytes(serialization.Encoding.PEM)}


def _certificate(
    own: ec.EllipticCurvePrivateKey,
    issuer_s: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    issuer: x509.Name,
    *extensions: tuple[x509.ExtensionType, bool],
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=own.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - dt.timedelta(days=1),
        not_valid_after=now + dt.timedelta(days=1),
    )
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, is_critical)
    return builder.sign(issuer_s, hashes.SHA256())


def _pem(key: ec.EllipticCurvePrivateKey, *certificates: x509.Certificate) -> bytes:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private + b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def chain_of(length: int, names: int) -> bytes:
    """A key and a chain of certificates of no known authority, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = x509.SubjectAlternativeName(
        [x509.DNSName(f"{number}.{'n' * 16}.example") for number in range(names)]
    )
    subjects = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"n{number}")])
        for number in range(length + 1)
    ]
    chain = [
        _certificate(
            key,
            key,
            subjects[number],
            subjects[number + 1],
            (x509.BasicConstraints(ca=number > 0, path_length=None), True),
            (alternatives, False),
        )
        for number in range(length)
    ]
    return _pem(key, *chain)


# ------------------------------------------------------------------------------------- framing


async def two_answers(target: Target) -> None:
    """Two answers to one request, in one write."""
    await _attack(target, _answering(OK + answer("500 Never asked for")))


async def late_answers(target: Target) -> None:
    """A second answer a moment after the first, when the connection is idle or used again."""

    async def script(connected: Connected) -> None:
        while True:
            await connected.read_request()
            connected.receiver.requests.clear()
            await connected.write(OK)
            await pause(LATE_S)
            await connected.write(answer("500 Never asked for"))

    await _attack(target, script)


async def early_answers(target: Target) -> None:
    """An answer before a byte of the request was read, and the request is never read."""

    async def script(connected: Connected) -> None:
        await connected.write(OK)
        await pause(1.0)

    await _attack(target, script)


async def bad_chunks(target: Target) -> None:
    """Chunked bodies whose sizes are none, too large, negative, or extended without end."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    bodies = (b"xyz\r\n", b"f" * 17 + b"\r\n", b"-1\r\n", b"1;" + b"e" * 70_000, b"0\r\nx: y")

    async def script(connected: Connected) -> None:
        await connected.read_request()
        connected.receiver.requests.clear()
        await connected.write(head + bodies[connected.number % len(bodies)])

    await _attack(target, script)


async def resets(target: Target) -> None:
    """The connection is reset: before, within and behind the answer."""
    pieces = (b"", b"HTTP/1.1 200", OK)

    async def script(connected: Connected) -> None:
        await connected.read_request()
        connected.receiver.requests.clear()
        if piece := pieces[connected.number % len(pieces)]:
            await connected.write(piece)
        connected.reset()

    await _attack(target, script)


async def many_origins(target: Target) -> None:
    """Receivers at many ports, that keep every connection open and answer once."""

    async def script(connected: Connected) -> None:
        await connected.read_request()
        connected.receiver.requests.clear()
        await connected.write(OK)
        await connected.wait_closed_by_peer()

    async with AsyncExitStack() as stack:
        receivers = [await stack.enter_async_context(Receiver(script)) for _ in range(200)]
        urls = [receiver.url() for receiver in receivers]
        publisher = await stack.enter_async_context(subscribed(target, urls))
        await publish_for_ever(publisher)


SCENARIOS = (
    Scenario("receiver: silent", silent),
    Scenario("receiver: trickle of a head", trickle_head),
    Scenario("receiver: trickle of a body", trickle_body),
    Scenario("receiver: never accepting", never_accepting),
    Scenario("receiver: TLS never finished", tls_never_finished),
    Scenario("receiver: endless head", endless_head),
    Scenario("receiver: endless interim", endless_interim),
    Scenario("receiver: endless body", endless_body),
    Scenario("receiver: absurd headers", absurd_headers),
    Scenario("receiver: huge certificates", huge_certificates),
    Scenario("receiver: huge trusted certificates", huge_trusted_certificates, settings=trusted()),
    Scenario(
        "receiver: large trusted certificates", large_trusted_certificates, settings=trusted()
    ),
    Scenario("receiver: two answers", two_answers),
    Scenario("receiver: late answers", late_answers),
    Scenario("receiver: early answers", early_answers),
    Scenario("receiver: bad chunks", bad_chunks),
    Scenario("receiver: resets", resets),
    Scenario("receiver: many origins", many_origins),
)
