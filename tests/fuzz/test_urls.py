"""A URL that is accepted is connected to exactly the host that other readers see in it."""

from __future__ import annotations

import re
import socket
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

import httptools
import httpx
import pytest

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.target import (
    MAX_HOST_LENGTH,
    MAX_URL_LENGTH,
    TargetUrl,
    TargetUrlError,
    check_url,
    parse_host,
    parse_target_url,
)
from hookline_service.targets.http.egress import EgressPolicy, parse_hosts, parse_networks
from hookline_service.targets.http.proxy import EgressProxy, parse_proxy
from hookline_service.targets.http.resolver import Resolver
from hookline_service.targets.http.sender import WebhookSender
from hookline_service.targets.http.transport import WebhookTransport
from tests.fuzz.mutation import corpus, edited, fuzz
from tests.targets.http.conftest import Post
from tests.targets.http.proxy import OPEN
from tests.targets.http.receiver import OK, Connected, Receiver

SEEDS = corpus("urls")
TOKENS = [
    "http://", "https://", "//", "/", "\\", "@", ":", "?", "#", "%", "%00", "%2e", "%2f",
    "%40", ".",
    "..", "[", "]", "[::1]", "::", "127.0.0.1", "0x7f", "0177", "2130706433", "localhost", "xn--",
    "evil.example", "\r\n", "\t", " ", "\x00", "\x7f", "\u3002", "\uff0e", "\u2024", "\u00ad",
    "\u200b",
    "\ufeff", "\u0130", "\u212a", "\ud800", ":80", ":0", ":65536", "a" * 64, "a." * 40,
]  # fmt: skip
URLS = edited(SEEDS, TOKENS)
# RFC 3986 appendix B: the parts of any reference, by its authors' own expression.
APPENDIX_B = re.compile(
    r"\A(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?\Z", re.DOTALL
)
ADDRESS = "8.8.8.8"


def accepted(url: str) -> TargetUrl | None:
    """What a URL is taken for; None where it is refused, as it may be in one way only."""
    try:
        target = parse_target_url(url)
    except TargetUrlError:
        [violation] = check_url(url)
        assert violation.description.isprintable()
        return None
    assert check_url(url) == []
    return target


@fuzz({"url": SEEDS}, url=URLS)
def test_other_readers_see_the_same_host_port_and_target(url: str) -> None:
    target = accepted(url)
    if target is None:
        return
    literal = f"[{target.host}]" if ":" in target.host else target.host
    standard, other = urllib.parse.urlsplit(url), httpx.URL(url)
    assert (standard.username, standard.password, standard.fragment) == (None, None, "")
    assert standard.scheme == other.scheme == target.scheme
    assert (standard.port or other.port or {"http": 80, "https": 443}[target.scheme]) == target.port
    scheme, authority, path, query, fragment = APPENDIX_B.fullmatch(url).groups()  # type: ignore[union-attr] # it matches any text
    assert (scheme.lower(), fragment) == (target.scheme, None)
    host = authority.removesuffix(f":{target.port}").lower()
    if ":" in target.host:
        for seen in (standard.hostname, other.host, host.strip("[]")):
            assert seen is not None
            assert IPv6Address(seen) == IPv6Address(target.host)
    else:
        assert standard.hostname == other.raw_host.decode() == host == target.host
    asked = (path or "/") + ("" if query is None else f"?{query}")
    assert target.request_target == asked
    assert parse_host(literal) == target.host


@fuzz({"url": SEEDS}, url=URLS)
def test_accepted_url_is_within_limits_and_forges_no_header(url: str) -> None:
    target = accepted(url)
    if target is None:
        return
    assert len(url) <= MAX_URL_LENGTH
    assert len(target.host) <= MAX_HOST_LENGTH
    assert 0 < target.port < 1 << 16
    for text in (target.host, target.request_target):
        assert re.fullmatch(r"[!-~]+", text)
    assert target.host == target.host.lower()
    assert not target.host.endswith(".")
    assert all(len(label) <= 63 for label in target.host.split("."))


@fuzz({"url": SEEDS}, url=URLS)
def test_text_that_the_system_reads_as_an_address_is_that_address(url: str) -> None:
    """`inet_aton` accepts a dozen spellings: the reader agrees with it, and egress checks it."""
    target = accepted(url)
    if target is None or ":" in target.host:
        return
    try:
        packed = socket.inet_aton(target.host)
    except OSError:
        return
    assert IPv4Address(target.host).packed == packed
    judged = EgressPolicy().check_host(target.host) is None
    assert judged == EgressPolicy().allows(str(IPv4Address(packed)))


@dataclass
class Way:
    """What left us for one URL: the name that was looked up, the tunnel, and the request."""

    looked_up: list[str] = field(default_factory=list)
    tunnels: list[str] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)


@dataclass
class Watched:
    """Attempts whose every outward step is seen."""

    post: Post
    way: Way


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    """A transport whose only way out is a proxy that writes down what it is asked for."""
    way = Way()

    async def lookup(host: str) -> Sequence[str]:
        way.looked_up.append(host)
        return [ADDRESS]

    async def tunnel(connected: Connected) -> None:
        head = await connected.reader.readuntil(b"\r\n\r\n")
        way.tunnels.append(head.split(b" ")[1].decode())
        await connected.write(OPEN)
        way.heads.append(await connected.reader.readuntil(b"\r\n\r\n"))
        await connected.write(OK)

    async with Receiver(tunnel) as proxy:
        transport = WebhookTransport(
            egress=EgressPolicy(parse_networks(["0.0.0.0/0", "::/0"])),
            proxy=EgressProxy("127.0.0.1", proxy.port),
            resolver=Resolver(lookup, ttl_s=0.0),
        )
        yield Watched(Post(transport, WebhookSender(transport)), way)
        await transport.aclose()


class Request:
    """A request as another parser reads it."""

    def __init__(self, head: bytes) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.url = b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(head)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert name not in self.headers
        self.headers[name] = value


@fuzz({"url": SEEDS}, url=URLS)
async def test_request_is_sent_to_the_host_of_the_accepted_url(watched: Watched, url: str) -> None:
    target = accepted(url)
    if target is None or target.scheme == "https":
        return
    way = watched.way
    for seen in (way.looked_up, way.tunnels, way.heads):
        seen.clear()
    outcome = await watched.post(url)
    host = urllib.parse.urlsplit(url).hostname
    assert host is not None
    try:
        literal = ip_address(host)
    except ValueError:
        assert way.looked_up == [host]
        place = ADDRESS
    else:
        assert way.looked_up == []
        place = f"[{target.host}]" if literal.version == 6 else str(literal)
    if outcome.kind is AttemptOutcome.ADDRESS_BLOCKED:  # an address that leads on to a private one
        assert way.tunnels == []
        return
    assert outcome.kind is AttemptOutcome.ACCEPTED, outcome
    assert way.tunnels == [f"{place}:{target.port}"]
    [head] = way.heads
    request = Request(head)
    assert request.url.decode() == target.request_target
    said = urllib.parse.urlsplit(f"//{request.headers[b'host'].decode()}")
    assert said.hostname == target.host
    assert (said.port or 80) == target.port


@fuzz(text=edited([*SEEDS, "*.example", "a.b", "[::1]", "1.2.3.4"], [*TOKENS, "*.", ","]))
def test_any_text_is_a_host_list_or_is_rejected(text: str) -> None:
    try:
        hosts = parse_hosts([text])
    except ValueError:
        return
    [host] = [*hosts.exact, *(f"below.{suffix}" for suffix in hosts.suffixes)]
    assert host in hosts
    literal = f"[{host}]" if ":" in host else host
    assert parse_target_url(f"http://{literal}/").host == host


@fuzz(text=edited(["http://out:hunter2@proxy.internal:3128", *SEEDS[:12]], [*TOKENS, "hunter2"]))
def test_password_of_a_proxy_is_never_shown(text: str) -> None:
    try:
        proxy = parse_proxy(text)
    except ValueError as error:
        shown = str(error)
    else:
        shown = repr(proxy)
        assert re.fullmatch(r"(Basic [A-Za-z0-9+/=]+)?", proxy.authorization)
        assert 0 < proxy.port < 1 << 16
    assert "hunter2" not in shown or "hunter2" not in text.partition("@")[0]
