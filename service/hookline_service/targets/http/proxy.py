"""The route through an egress proxy: an HTTP CONNECT tunnel for every connection.

Theory. The addresses of a name are checked as without a proxy, and CONNECT names the checked
address, so that the proxy resolves nothing and a name cannot resolve to another address later.
Where only the proxy can resolve, the operator sets `HOOKLINE_EGRESS_PROXY_RESOLVES`: the proxy then
receives names and must check their addresses; literal addresses are still checked here. TLS runs
inside the tunnel and is verified against the target's name; the proxy sees hosts, not contents.

Attribution of a failed tunnel. Failures of the proxy itself (no connection, no HTTP response, bad
credentials) are internal errors. 403, a 5xx and a timeout are ambiguous: proxies use them both when
the target fails and when the proxy's own uplink is down. To decide, the route probes witnesses:
other targets that earlier tunnels reached. A tenant may have a target that the proxy reaches
without its uplink, on the proxy's own machine or network, and must not make an outage cost other
tenants their attempts. So one tenant's witnesses count for that tenant only. For all others the
proxy works if tunnels to witnesses of at least two tenants open, and to most of those probed.

Sources: RFC 9110 sections 9.3.6 (CONNECT) and 11.7.2; RFC 7617 (Basic).
"""

from __future__ import annotations

import asyncio
import re
import socket
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NoReturn
from urllib.parse import unquote

import structlog

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.target import TargetUrlError, parse_target_url
from hookline_service.targets.http.dialer import RouteFailure, connect_socket
from hookline_service.targets.http.egress import is_address
from hookline_service.targets.http.failure import AttemptFailure, failure_of_os_error
from hookline_service.targets.http.resolver import Resolver

HEAD_BYTES_MAX: Final = 16_384
"""The limit on the head of the proxy's response to CONNECT."""
WITNESSES_MAX: Final = 4
"""Of each tenant."""
WITNESS_TENANTS_MAX: Final = 256
WITNESSES_ASKED: Final = 3
WITNESS_SHARE: Final = 0.8
"""The part of the probe time that one witness may take, so that a silent one is not the last."""
WITNESS_TENANTS_NEEDED: Final = 2
"""Tenants whose targets must be reached before a failure counts against another tenant's target."""
VERDICT_TTL_S: Final = 2.0
PROBE_S_MAX: Final = 2.0
PROBE_SHARE: Final = 0.25
"""The part of an attempt's time, up to `PROBE_S_MAX`, that is reserved for probing witnesses."""

Place = tuple[str, int]
"""A host and a port that a tunnel leads to."""

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r\n")
_HEAD_END = b"\r\n\r\n"


class Refusal(NamedTuple):
    """An ambiguous failure of a tunnel: possibly the target's."""

    kind: AttemptOutcome
    message: str


_AMBIGUOUS: Final = {
    403: Refusal(
        AttemptOutcome.ADDRESS_BLOCKED, "the egress proxy does not let the target be reached"
    ),
    500: Refusal(AttemptOutcome.CONNECTION_FAILED, "the egress proxy did not reach the target"),
    502: Refusal(AttemptOutcome.CONNECTION_FAILED, "the egress proxy did not reach the target"),
    503: Refusal(AttemptOutcome.CONNECTION_FAILED, "the egress proxy did not reach the target"),
    504: Refusal(
        AttemptOutcome.TIMEOUT, "the egress proxy did not reach the target in its own time"
    ),
}
_SILENT: Final = Refusal(
    AttemptOutcome.TIMEOUT, "the egress proxy opened no tunnel before the deadline"
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EgressProxy:
    """A proxy as configured by an operator. Its credentials are not part of its repr."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)
    """The value of `proxy-authorization`; empty: the header is not sent."""
    resolves: bool = False
    """The proxy receives names, resolves them and checks their addresses."""


def parse_proxy(text: str) -> EgressProxy:
    """Parse `http://[user:password@]host:port`; raise ValueError, without the input."""
    scheme, separator, rest = text.partition("://")
    credentials, at, place = rest.rpartition("@")
    try:
        url = parse_target_url(f"{scheme}{separator}{place}")
    except TargetUrlError:
        raise ValueError("must be a URL such as http://user:password@proxy.internal:3128") from None
    if url.scheme != "http" or url.request_target != "/" or not re.search(r":[0-9]+/?\Z", place):
        raise ValueError(
            "must be http://, with a port and no path: http://user:password@proxy.internal:3128"
        )
    return EgressProxy(url.host, url.port, _basic(credentials) if at else "")


def _basic(credentials: str) -> str:
    user, colon, password = (unquote(part) for part in credentials.partition(":"))
    if not colon or not user or ":" in user or not (user + password).isprintable():
        raise ValueError("must have user:password before the @, percent-encoded, without controls")
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


class _Verdict:
    """A cached result: one caller at a time computes it, and it is valid for `VERDICT_TTL_S`."""

    def __init__(self) -> None:
        self._asking = asyncio.Lock()
        self._is_good = False
        self._found_at = float("-inf")

    async def of(self, ask: Callable[[], Awaitable[bool]]) -> bool:
        """Return the cached result, or compute a new one if it has expired."""
        loop = asyncio.get_running_loop()
        async with self._asking:
            if loop.time() - self._found_at > VERDICT_TTL_S:
                self._is_good = await ask()
                self._found_at = loop.time()
        return self._is_good


class _Witnesses:
    """Places that tunnels of one tenant reached, the latest last, and their probe's result."""

    def __init__(self) -> None:
        self.verdict = _Verdict()
        self._places: OrderedDict[Place, None] = OrderedDict()

    def add(self, place: Place) -> None:
        """Remember a place that a tunnel reached."""
        self._places[place] = None
        self._places.move_to_end(place)
        if len(self._places) > WITNESSES_MAX:
            self._places.popitem(last=False)

    def discard(self, place: Place) -> None:
        """Forget a place that is no longer reached."""
        self._places.pop(place, None)

    def but(self, accused: Place) -> list[Place]:
        """Return all places except one, the latest first."""
        return [place for place in reversed(self._places) if place != accused]


class ProxyRoute:
    """The route through one proxy."""

    def __init__(self, proxy: EgressProxy, resolver: Resolver) -> None:
        self._proxy = proxy
        self._resolver = resolver
        self._witnesses: OrderedDict[str, _Witnesses] = OrderedDict()
        """By tenant; the tenant of the latest tunnel comes last."""
        self._verdict = _Verdict()
        self._is_failing = False

    @property
    def takes_names(self) -> bool:
        """Whether the proxy resolves names."""
        return self._proxy.resolves

    async def open(self, host: str, port: int, limit: float, tenant_id: str = "") -> socket.socket:
        """Open a tunnel to the host; `limit` includes the time to probe witnesses."""
        left_s = limit - asyncio.get_running_loop().time()
        answer_by = limit - min(PROBE_S_MAX, max(0.0, left_s) * PROBE_SHARE)
        try:
            found = await self._tunnel(host, port, answer_by)
            if isinstance(found, Refusal):
                await self._blame(found, (host, port), tenant_id, limit)
        except RouteFailure as failure:
            self._log_change(failure)
            raise
        self._log_change(None)
        self._opened((host, port), tenant_id)
        return found

    def _opened(self, place: Place, tenant_id: str) -> None:
        """Add a reached place to the tenant's witnesses."""
        self._witnesses.setdefault(tenant_id, _Witnesses()).add(place)
        self._witnesses.move_to_end(tenant_id)
        if len(self._witnesses) > WITNESS_TENANTS_MAX:
            self._witnesses.popitem(last=False)

    async def _tunnel(self, host: str, port: int, limit: float) -> socket.socket | Refusal:
        """Return a tunnel, or the refusal if it may be the host's failure."""
        sock = await self._reach(limit)
        try:
            async with asyncio.timeout_at(limit):
                status = await self._connect(sock, host, port)
        except TimeoutError:
            sock.close()
            return _SILENT
        except OSError:
            sock.close()
            raise RouteFailure("the connection to the egress proxy was lost") from None
        except BaseException:
            sock.close()
            raise
        if 200 <= status < 300:  # noqa: PLR2004 - any 2xx opens it (RFC 9110 section 9.3.6)
            return sock
        sock.close()
        if status not in _AMBIGUOUS:
            raise RouteFailure(f"the egress proxy answered {status}")
        return _AMBIGUOUS[status]

    async def _reach(self, limit: float) -> socket.socket:
        """Connect to the proxy itself: its addresses in turn, each with a share of the time."""
        loop = asyncio.get_running_loop()
        is_shortage = False
        with suppress(TimeoutError, AttemptFailure):
            addresses: tuple[str, ...] = (self._proxy.host,)
            if not is_address(self._proxy.host):
                async with asyncio.timeout_at(limit):
                    addresses = await self._resolver.resolve(self._proxy.host)
            for index, address in enumerate(addresses):
                share_s = (limit - loop.time()) / (len(addresses) - index)
                try:
                    async with asyncio.timeout(max(0.0, share_s)):
                        sock, _ = await connect_socket(address, self._proxy.port)
                        return sock
                except OSError as error:  # its time that is over, too
                    is_shortage = failure_of_os_error(error).is_shortage
        raise RouteFailure("the egress proxy cannot be reached", is_shortage=is_shortage)

    async def _connect(self, sock: socket.socket, host: str, port: int) -> int:
        """Send CONNECT and return the response's status. Raises OSError and `RouteFailure`."""
        loop = asyncio.get_running_loop()
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {place} HTTP/1.1", f"host: {place}"]
        if self._proxy.authorization:
            lines.append(f"proxy-authorization: {self._proxy.authorization}")
        await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode())
        head = b""
        while _HEAD_END not in head:
            data = await loop.sock_recv(sock, HEAD_BYTES_MAX)
            head += data
            if not data or len(head) > HEAD_BYTES_MAX:
                raise RouteFailure("the egress proxy did not answer in HTTP")
        line = _STATUS_LINE.match(head)
        if line is None:
            raise RouteFailure("the egress proxy did not answer in HTTP")
        status = int(line[1])
        if 200 <= status < 300 and not head.endswith(_HEAD_END):  # noqa: PLR2004 - as above
            # These bytes came through the tunnel before any request was sent.
            raise AttemptFailure(
                AttemptOutcome.PROTOCOL_ERROR, "the target sent bytes before any request"
            )
        return status

    async def _blame(
        self, refusal: Refusal, accused: Place, tenant_id: str, limit: float
    ) -> NoReturn:
        """Raise the target's failure if the proxy works for others, otherwise `RouteFailure`."""
        if not await self._works(accused, tenant_id, limit):
            raise RouteFailure(refusal.message)
        self._log_change(None)
        raise AttemptFailure(refusal.kind, refusal.message)

    async def _works(self, accused: Place, tenant_id: str, limit: float) -> bool:
        """Whether witnesses are reached: one of the tenant's own, or those of several tenants."""
        now = asyncio.get_running_loop().time()
        by = now + WITNESS_SHARE * (limit - now)
        asked = [self._verdict.of(lambda: self._works_for_most(accused, by))]
        if (own := self._witnesses.get(tenant_id)) is not None:
            asked.append(own.verdict.of(lambda: self._works_for_one(own, accused, by)))
        try:
            async with asyncio.timeout_at(limit):
                return any(await asyncio.gather(*asked))
        except TimeoutError:
            return False

    async def _works_for_one(self, own: _Witnesses, accused: Place, limit: float) -> bool:
        for place in own.but(accused)[:WITNESSES_ASKED]:
            if await self._leads_to(place, own, limit):
                return True
        return False

    async def _works_for_most(self, accused: Place, limit: float) -> bool:
        """Whether the latest witnesses of most probed tenants are reached, and of enough."""
        asked = [(one, one.but(accused)) for one in reversed(self._witnesses.values())]
        asked = [(one, places) for one, places in asked if places][:WITNESSES_ASKED]
        if len(asked) < WITNESS_TENANTS_NEEDED:
            return False
        found = await asyncio.gather(
            *(self._leads_to(places[0], one, limit) for one, places in asked)
        )
        opened = sum(found)
        return opened >= WITNESS_TENANTS_NEEDED and 2 * opened > len(asked)

    async def _leads_to(self, place: Place, of: _Witnesses, limit: float) -> bool:
        """Whether a tunnel to a witness opens; forget the witness if it does not."""
        found: socket.socket | Refusal | None
        try:
            found = await self._tunnel(*place, limit)
        except RouteFailure:
            return False
        except AttemptFailure:  # the target sent bytes before any request
            found = None
        if isinstance(found, socket.socket):
            found.close()
            return True
        of.discard(place)
        return False

    def _log_change(self, failure: RouteFailure | None) -> None:
        """Log when the proxy begins to fail and when it works again, not each attempt."""
        is_failing = failure is not None
        if is_failing is self._is_failing:
            return
        self._is_failing = is_failing
        if failure is not None:
            _log.warning("egress_proxy_failed", error=failure.message)
        else:
            _log.info("egress_proxy_recovered")
