"""The sender of HTTP targets: prepare a target once, then sign, send and classify each attempt.

`PreparedTarget` holds all that does not change between requests, so that a request costs a
signature and a few bytes. It is prepared once per revision of a subscription.

`send` raises for nothing that the network or the target does: every attempt ends as an `Outcome`.
Cancellation propagates, and closes the connection.

Failover. Where no connection to the target's URL can be made, its failover URLs are tried in turn
within the same deadline. Once a byte of the request may have been sent, no other URL is tried: the
server may have accepted the event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx

from hookline_service.domain.attempt import AttemptOutcome, Outcome
from hookline_service.domain.retry import parse_retry_after
from hookline_service.domain.subscription import HttpTarget
from hookline_service.domain.target import TargetUrl, check_headers, parse_target_url
from hookline_service.targets.http.connection import Origin
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.payload import Payload
from hookline_service.targets.http.signature import Signer
from hookline_service.targets.http.tls import ClientIdentity


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One URL of a target."""

    url: str
    http_url: httpx.URL
    origin: Origin
    request_target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    """The headers of every request to it, `host` first."""
    tenant_id: str
    """The tenant that owns the URL."""


@dataclass(frozen=True, slots=True)
class PreparedTarget:
    """The prepared URLs, deadline and signing keys of one subscription."""

    endpoints: tuple[Endpoint, ...]
    """The target's URL, then its failover URLs."""
    timeout_s: float
    signer: Signer


def prepare_target(
    target: HttpTarget,
    signer: Signer,
    *,
    user_agent: str,
    tenant_id: str = "",
    secret_headers: Mapping[str, str] | None = None,
    identity: ClientIdentity | None = None,
) -> PreparedTarget:
    """Make a tenant's target ready; `user_agent` is `hookline/<version>`.

    `identity` is the certificate that its https servers are shown.

    Raises ValueError where a URL or a header is outside the grammar of `domain/target.py`: such a
    target should never have been accepted, and a line break in it would forge a request.
    """
    endpoints = prepare_endpoints(
        target,
        user_agent=user_agent,
        tenant_id=tenant_id,
        secret_headers=secret_headers,
        identity=identity,
    )
    return PreparedTarget(endpoints=endpoints, timeout_s=target.timeout_s, signer=signer)


def prepare_endpoints(
    target: HttpTarget,
    *,
    user_agent: str,
    tenant_id: str = "",
    secret_headers: Mapping[str, str] | None = None,
    identity: ClientIdentity | None = None,
) -> tuple[Endpoint, ...]:
    """The URLs of a target, made ready; raises as `prepare_target` does."""
    violations = check_headers(target.headers, secret_headers or {})
    if violations:
        raise ValueError(f"{violations[0].field} {violations[0].description}")
    common = (
        (b"user-agent", user_agent.encode("ascii")),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"identity"),
        *(
            (name.encode("ascii"), value.encode("ascii"))
            for headers in (target.headers, secret_headers or {})
            for name, value in headers.items()
        ),
    )
    return tuple(_endpoint_of(url, common, identity, tenant_id) for url in target.urls)


def _endpoint_of(
    url: str,
    common: tuple[tuple[bytes, bytes], ...],
    identity: ClientIdentity | None,
    tenant_id: str,
) -> Endpoint:
    parsed = parse_target_url(url)
    shown = identity if parsed.scheme == "https" else None
    return Endpoint(
        url=url,
        http_url=httpx.URL(url),
        origin=Origin(parsed.scheme, parsed.host, parsed.port, shown),
        request_target=parsed.request_target.encode("ascii"),
        headers=((b"host", _host_header(parsed)), *common),
        tenant_id=tenant_id,
    )


def _host_header(parsed: TargetUrl) -> bytes:
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    return (host if parsed.is_default_port else f"{host}:{parsed.port}").encode("ascii")


EXCERPT_BYTES = 1_024

_FAILS_OVER = frozenset(
    {AttemptOutcome.CONNECTION_FAILED, AttemptOutcome.TLS_FAILED, AttemptOutcome.TIMEOUT}
)


class WebhookSender:
    """Sends signed requests through an httpx transport."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        *,
        monotonic_s: Callable[[], float] = time.perf_counter,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        """`monotonic_s` measures latencies and deadlines, `unix_s` reads dates in `Retry-After`."""
        self._transport = transport
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s

    async def send(
        self,
        target: PreparedTarget,
        webhook_id: str,
        timestamp_s: int,
        payload: Payload,
        may_send: Callable[[], bool],
        extra_headers: Sequence[tuple[bytes, bytes]] | None = None,
    ) -> Outcome:
        """Make one attempt.

        `webhook_id` is the event's id, the same for every attempt; `timestamp_s` this attempt's
        Unix time in seconds. `may_send` is called just before the request's first byte is written,
        on each connection: where it says False nothing is sent, and the outcome is INTERNAL_ERROR.
        `extra_headers` (such as `traceparent`) are sent as they are.
        """
        body = payload.body
        headers = [
            (b"content-type", payload.content_type),
            (b"content-length", b"%d" % len(body)),
            (b"webhook-id", webhook_id.encode()),
            (b"webhook-timestamp", b"%d" % timestamp_s),
            (b"webhook-signature", target.signer.sign(webhook_id, timestamp_s, body).encode()),
        ]
        if extra_headers:
            headers += extra_headers
        stream = httpx.ByteStream(body)
        began = self._monotonic_s()
        endpoints = target.endpoints
        spent_s = 0.0
        left = len(endpoints)
        while True:
            endpoint = endpoints[-left]
            remaining_s = target.timeout_s - spent_s
            request = httpx.Request(
                "POST",
                endpoint.http_url,
                headers=[*endpoint.headers, *headers],
                stream=stream,
                extensions={
                    "timeout_s": remaining_s,
                    "connect_timeout_s": remaining_s / left,
                    "may_send": may_send,
                    "origin": endpoint.origin,
                    "target": endpoint.request_target,
                    "tenant_id": endpoint.tenant_id,
                },
            )
            try:
                response = await self._transport.handle_async_request(request)
                return await self._judge(response, endpoint, began)
            except httpx.TransportError as error:
                # Its traceback holds this frame, which holds it: a cycle that would keep what the
                # attempt had, a failed handshake's certificates as well, until a collection.
                failure = _failure_of(error).with_traceback(None)
            left -= 1
            spent_s = self._monotonic_s() - began
            if (
                left == 0
                or failure.was_sent
                or failure.kind not in _FAILS_OVER
                or spent_s >= target.timeout_s
            ):
                return self._failed(failure, endpoint, began)

    async def _judge(self, response: httpx.Response, endpoint: Endpoint, began: float) -> Outcome:
        """The outcome of an answer: its status decides."""
        status = response.status_code
        remote_address: str | None = response.extensions.get("remote_address")
        if 200 <= status < 300:  # noqa: PLR2004 - 2xx is what success is called
            if not isinstance(response.stream, httpx.ByteStream):
                await response.aclose()
            return Outcome(
                AttemptOutcome.ACCEPTED,
                self._latency_us(began),
                endpoint.url,
                http_status=status,
                remote_address=remote_address,
            )
        return Outcome(
            AttemptOutcome.HTTP_ERROR,
            self._latency_us(began),
            endpoint.url,
            http_status=status,
            error=f"the target answered {status}",
            excerpt=await _excerpt_of(response),
            remote_address=remote_address,
            retry_after_s=self._retry_after_s(response),
        )

    def _retry_after_s(self, response: httpx.Response) -> float | None:
        for name, value in response.headers.raw:
            if name.lower() == b"retry-after":
                return parse_retry_after(value, self._unix_s())
        return None

    def _failed(self, failure: AttemptFailure, endpoint: Endpoint, began: float) -> Outcome:
        return Outcome(
            failure.kind,
            self._latency_us(began),
            endpoint.url,
            error=failure.message,
            remote_address=failure.remote_address,
        )

    def _latency_us(self, began: float) -> int:
        return int((self._monotonic_s() - began) * 1_000_000)


async def _excerpt_of(response: httpx.Response) -> bytes:
    """The first bytes of an answer's body, as they came: no decoding."""
    if isinstance(response.stream, httpx.ByteStream):
        return b"".join(response.stream)[:EXCERPT_BYTES]
    excerpt = b""
    try:
        async for chunk in response.aiter_raw():
            excerpt += chunk[: EXCERPT_BYTES - len(excerpt)]
            if len(excerpt) >= EXCERPT_BYTES:
                break
    finally:
        await response.aclose()
    return excerpt


def _failure_of(error: httpx.TransportError) -> AttemptFailure:
    """Another transport's errors in our words: any httpx transport can stand in for ours."""
    if isinstance(error, AttemptFailure):
        return error
    if isinstance(error, httpx.ConnectTimeout):
        return AttemptFailure(AttemptOutcome.TIMEOUT, "no connection before the deadline")
    if isinstance(error, httpx.TimeoutException):
        return AttemptFailure(
            AttemptOutcome.TIMEOUT, "no answer before the deadline", was_sent=True
        )
    if isinstance(error, httpx.ConnectError):
        return AttemptFailure(AttemptOutcome.CONNECTION_FAILED, "no connection could be made")
    if isinstance(error, httpx.ProtocolError):
        return AttemptFailure(
            AttemptOutcome.PROTOCOL_ERROR, "the answer is no HTTP/1.1", was_sent=True
        )
    return AttemptFailure(
        AttemptOutcome.CONNECTION_FAILED, "the connection was lost", was_sent=True
    )
