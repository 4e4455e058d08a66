"""A network namespace in which all public and private addresses of the cases accept connections.

Run by `test_namespace.py` in a network, mount and user namespace where this process is root: every
address below belongs to this machine, so every connection is accepted. The operating system
resolves names with a DNS server that also runs here. Prints the result of each case, and the
addresses that were connected to during it, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from hookline_service.domain.subscription import HttpTarget, SignatureScheme
from hookline_service.targets.http.egress import EgressPolicy
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.resolver import Resolver
from hookline_service.targets.http.sender import WebhookSender, prepare_target
from hookline_service.targets.http.signature import Signer, generate_secret
from hookline_service.targets.http.transport import WebhookTransport
from hookline_service.targets.payload import Payload
from tests.waiting import until

PORT = 8080
PUBLIC, PUBLIC_6 = "93.184.216.34", "2606:2800:220:1::1"
PRIVATE = ("10.0.0.1", "192.168.0.1", "172.16.0.1", "100.64.0.1", "169.254.169.254", "198.18.0.1")
PRIVATE_6 = ("fd00::1", "2001:db8::1")
LOOPBACK = "127.0.0.1"
_A, _CNAME, _AAAA = 1, 5, 28
_ASKED_NAME = b"\xc0\x0c"
"""The name in the question, by its place in the message."""
_ALIAS = "inside.test"


@dataclass(frozen=True)
class Case:
    """A target, the addresses of its name, and the expected outcome of each attempt."""

    url: str
    outcomes: Sequence[str]
    answers: Sequence[Sequence[str]] = ()
    """What DNS says of `case.test`: one set for each lookup, the last again and again."""
    reached: Sequence[str] = ()
    """The addresses that may be connected to."""
    failover_url: str = ""


@dataclass
class Seen:
    """The result of a case."""

    outcomes: list[str] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)


_BLOCKED = "ADDRESS_BLOCKED"
_NAME = f"http://case.test:{PORT}/"
CASES = {
    "a public name": Case(_NAME, ["ACCEPTED"] * 2, [[PUBLIC]], [PUBLIC] * 2),
    "a public name of IPv6": Case(_NAME, ["ACCEPTED"], [[PUBLIC_6]], [PUBLIC_6]),
    "first public, then private": Case(
        _NAME, ["ACCEPTED", _BLOCKED, _BLOCKED], [[PUBLIC], [PRIVATE[0]]], [PUBLIC]
    ),
    "public again and again, then loopback": Case(
        _NAME, ["ACCEPTED", "ACCEPTED", _BLOCKED], [[PUBLIC], [PUBLIC], [LOOPBACK]], [PUBLIC] * 2
    ),
    "first private, then public": Case(
        _NAME, [_BLOCKED, "ACCEPTED"], [[PRIVATE[4]], [PUBLIC]], [PUBLIC]
    ),
    "public and private in one answer": Case(_NAME, [_BLOCKED], [[PUBLIC, PRIVATE[0]]]),
    "private and public in one answer": Case(_NAME, [_BLOCKED], [[PRIVATE[0], PUBLIC]]),
    "public by A, private by AAAA": Case(_NAME, [_BLOCKED], [[PUBLIC, PRIVATE_6[0]]]),
    "private by A, public by AAAA": Case(_NAME, [_BLOCKED], [[PUBLIC_6, PRIVATE[1]]]),
    "an alias of a private name": Case(_NAME, [_BLOCKED], [[_ALIAS]]),
    "the unspecified address": Case(_NAME, [_BLOCKED], [["0.0.0.0"]]),  # noqa: S104 - connected to
    "private within IPv6": Case(_NAME, [_BLOCKED], [[f"::ffff:{PRIVATE[0]}"]]),
    "a failover URL": Case(
        f"http://{PUBLIC}:1024/", [_BLOCKED], [[PRIVATE[0]]], failover_url=_NAME
    ),
    **{
        f"a name that leads to {address}": Case(_NAME, [_BLOCKED], [[address]])
        for address in (*PRIVATE, *PRIVATE_6, LOOPBACK, "::1")
    },
    **{
        f"the literal {host}": Case(f"http://{host}:{PORT}/", [_BLOCKED])
        for host in (
            *PRIVATE, *(f"[{a}]" for a in PRIVATE_6), LOOPBACK, "[::1]", f"[::ffff:{PRIVATE[0]}]",
        )
    },
    **{
        f"a redirect to {address} by {status}": Case(
            f"http://{PUBLIC}:{PORT}/{status}/{address}", ["HTTP_ERROR"], reached=[PUBLIC]
        )
        for status in (301, 302, 303, 307, 308)
        for address in (PRIVATE[0], PRIVATE[4])
    },
}  # fmt: skip


OWN, THEIRS = "INTERNAL_ERROR", "CONNECTION_FAILED"
TROUBLES = {
    # The first label says how a name is answered, the last one how all others below it are.
    "silent.silent": OWN,
    "servfail.servfail": OWN,
    "refused.refused": OWN,
    "silent.servfail": OWN,
    "silent.nxdomain": THEIRS,
    "servfail.nxdomain": THEIRS,
    "refused.nxdomain": THEIRS,
    "loop.nxdomain": THEIRS,
    "cut.nxdomain": THEIRS,
    "nonsense.nxdomain": THEIRS,
    "nxdomain.silent": THEIRS,
}
"""What is found of names while `localhost` and a name that the resolver keeps resolve."""
_CODES = {"servfail": 2, "nxdomain": 3, "refused": 5, "cut": 0, "nonsense": 0, "loop": 0}
_KEPT = "kept.silent"


class Names(asyncio.DatagramProtocol):
    """A DNS server that answers for `case.test` with the next answer of the case.

    It answers for names of `TROUBLES`, and below their top-level domains, as these specify.
    """

    def __init__(self) -> None:
        self.answers: Sequence[Sequence[str]] = ()
        self._asked = {_A: 0, _AAAA: 0}

    def begin(self, answers: Sequence[Sequence[str]]) -> None:
        """Serve the answers of a new case."""
        self.answers = answers
        self._asked = dict.fromkeys(self._asked, 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        name, end = [], 12
        while data[end]:
            name.append(data[end + 1 : end + 1 + data[end]].decode())
            end += 1 + data[end]
        kind = int.from_bytes(data[end + 1 : end + 3], "big")
        way = next((label for label in (name[0], name[-1]) if label in (*_CODES, "silent")), "")
        if ".".join(name) != _KEPT and way:
            if way != "silent":
                self._transport.sendto(_misbehaving(way, data, end + 5), addr)  # type: ignore[attr-defined]
            return
        records = self._records(".".join(name), kind)
        head = data[:2] + b"\x85\x80\x00\x01" + len(records).to_bytes(2, "big") + bytes(4)
        body = b"".join(
            owner
            + each.to_bytes(2, "big")
            + b"\0\x01"
            + bytes(4)
            + len(value).to_bytes(2, "big")
            + value
            for owner, each, value in records
        )
        self._transport.sendto(head + data[12 : end + 5] + body, addr)  # type: ignore[attr-defined]

    def _records(self, name: str, kind: int) -> list[tuple[bytes, int, bytes]]:
        """Return the owner, type and data of each record; all have a time to live of 0."""
        if name == _KEPT:
            return [(_ASKED_NAME, _A, ip_address(PUBLIC).packed)] if kind == _A else []
        if name != "case.test" or kind not in self._asked or not self.answers:
            return []
        # A and AAAA are asked for side by side: each has its own count of lookups.
        said = self.answers[min(self._asked[kind], len(self.answers) - 1)]
        self._asked[kind] += 1
        if said == [_ALIAS]:
            alias = b"".join(bytes([len(x)]) + x.encode() for x in _ALIAS.split(".")) + b"\0"
            inside = [(alias, _A, ip_address(PRIVATE[0]).packed)] if kind == _A else []
            return [(_ASKED_NAME, _CNAME, alias), *inside]
        packed = [ip_address(text).packed for text in said]
        size = 4 if kind == _A else 16
        return [(_ASKED_NAME, kind, each) for each in packed if len(each) == size]


def _misbehaving(way: str, asked: bytes, end: int) -> bytes:
    """Return a faulty answer: an error code, a truncated one, an alias of itself, or garbage."""
    flags = 0x8180 | _CODES[way] | (0x0200 if way == "cut" else 0)
    count = {"loop": 1, "nonsense": 5}.get(way, 0)
    head = asked[:2] + flags.to_bytes(2, "big") + b"\0\x01" + count.to_bytes(2, "big") + bytes(4)
    alias = _ASKED_NAME + _CNAME.to_bytes(2, "big") + b"\0\x01" + bytes(4) + b"\0\x02" + _ASKED_NAME
    return head + asked[12:end] + {"loop": alias, "nonsense": b"\xff\xff"}.get(way, b"")


async def lookups() -> dict[str, str]:
    """Resolve all names of `TROUBLES` concurrently and return each result."""
    resolver = Resolver(ttl_s=0.0)
    try:
        for witness in ("localhost", _KEPT):
            assert await resolver.resolve(witness, "hostile")
        found = await asyncio.gather(*map(resolver.resolve, TROUBLES), return_exceptions=True)
        for witness in ("localhost", _KEPT):
            assert await resolver.resolve(witness, "hostile")
    finally:
        await resolver.aclose()
    return {
        name: failure.kind.name if isinstance(failure, AttemptFailure) else repr(failure)
        for name, failure in zip(TROUBLES, found, strict=True)
    }


class World:
    """The servers of the namespace: every address, on one port."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Record the address that was connected to; answer 200, or the redirect in the path."""
        self.reached.append(writer.get_extra_info("sockname")[0].removeprefix("::ffff:"))
        try:
            line = await reader.readline()
            _, path, *_ = (*line.split(b" "), b"/")
            _, status, *place = path.split(b"/")
            answer = b"HTTP/1.1 200 OK\r\n"
            if place:
                answer = b"HTTP/1.1 %b Go\r\nlocation: http://%b:%d/\r\n" % (status, place[0], PORT)
            writer.write(answer + b"connection: close\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
        finally:
            writer.close()

    async def is_reached_at(self, address: str) -> bool:
        """Return whether a plain socket can connect: otherwise a case would prove nothing."""
        before = len(self.reached)
        try:
            reader, writer = await asyncio.open_connection(address, PORT)
        except OSError:  # a new address of IPv6 takes the system a moment
            return False
        writer.write(b"GET / HTTP/1.1\r\n")
        await reader.read()
        writer.close()
        return self.reached[before:] == [address]


async def attempt(case: Case) -> list[str]:
    """Make the attempts of the case, each with a new connection and a new lookup."""
    signer = Signer([generate_secret(SignatureScheme.HMAC_SHA256)])
    failover_urls = (case.failover_url,) if case.failover_url else ()
    target = HttpTarget(url=case.url, failover_urls=failover_urls, timeout_s=10.0)
    prepared = prepare_target(target, signer, user_agent="hookline/1.2.3")
    transport = WebhookTransport(egress=EgressPolicy(), resolver=Resolver(ttl_s=0.0))
    sender = WebhookSender(transport)
    try:
        return [
            (
                await sender.send(prepared, "evt_1", 0, Payload(b"{}", b"a/b"), lambda: True)
            ).record.kind
            for _ in case.outcomes
        ]
    finally:
        await transport.aclose()


async def main() -> dict[str, object]:
    """Run the cases one after another."""
    names, world = Names(), World()
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: names, (LOOPBACK, 53))
    sock = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    server = await asyncio.start_server(world.answer, sock=sock)
    private = [*PRIVATE, *PRIVATE_6, LOOPBACK, "::1"]
    for address in (PUBLIC, PUBLIC_6, *private):
        await until(partial(world.is_reached_at, address), f"{address} answers")
    seen: dict[str, Seen] = {}
    for name, case in CASES.items():
        names.begin(case.answers)
        before = len(world.reached)
        outcomes = await attempt(case)
        # Connections are taken in order: had there been one, it would stand before this.
        await world.is_reached_at(LOOPBACK)
        seen[name] = Seen(outcomes, world.reached[before:-1])
    server.close()
    return {
        "reachable": private,
        "cases": {name: asdict(each) for name, each in seen.items()},
        "lookups": await lookups(),
    }


def make_world(resolv_conf: Path) -> None:
    """Set up the addresses and the resolver of this namespace. Needs root in the namespace only."""
    resolv_conf.write_text(f"nameserver {LOOPBACK}\n")
    subprocess.run(["mount", "--bind", str(resolv_conf), "/etc/resolv.conf"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in (PUBLIC, *PRIVATE):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    for address in (PUBLIC_6, *PRIVATE_6):
        subprocess.run(["ip", "address", "add", f"{address}/128", "dev", "lo", "nodad"], check=True)


if __name__ == "__main__":
    make_world(Path(sys.argv[1]))
    json.dump(asyncio.run(main()), sys.stdout)
