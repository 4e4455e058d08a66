"""The sender of HTTP targets: prepare a target once, then sign, send and classify each attempt.

`HttpTargetSender` is the `TargetSender` of one subscription. It holds all that does not change
between requests (`PreparedTarget`), so that a request costs a signature and a few bytes, and sends
through the node's one `WebhookSender`.

HTTP ends here: a response's status becomes a `Verdict` (`_verdict_of`), and only that reaches
dispatching. 2xx is ACCEPTED, 410 GONE, the statuses of overload THROTTLED, all else RETRYABLE.

`send` raises for nothing that the network or the target does: every attempt ends as an `Outcome`.
Cancellation propagates, and closes the connection.

Failover. Where no connection to the target's URL can be made, its failover URLs are tried in turn
within the same deadline. Once a byte of the request may have been sent, no other URL is tried: the
server may have accepted the event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from hookline_service.domain.attempt import (
    AttemptOutcome,
    AttemptRecord,
    Outcome,
    Verdict,
)
from hookline_service.domain.retry import parse_retry_after
from hookline_service.domain.subscription import HttpTarget, PayloadFormat, Subscription
from hookline_service.domain.target import TargetUrl, check_headers, parse_target_url
from hookline_service.targets.http.connection import Origin
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.signature import Signer, parse_secret
from hookline_service.targets.http.tls import ClientIdentity
from hookline_service.targets.payload import Payload
from hookline_service.targets.sender import SendJob, TargetCredentials

EXCERPT_BYTES = 1_024
TRACEPARENT = b"traceparent"

GONE = 410
"""RFC 9110 section 15.5.11: the target is gone for good; its subscription is disabled."""

THROTTLES = frozenset({429, 502, 503, 504})
"""The statuses of an overloaded target; its lane slows down."""

ENDPOINT_BYTES, HEADER_BYTES = 500, 120
"""The approximate memory of an endpoint, and of a header beside its text."""

_FAILS_OVER = frozenset(
    {AttemptOutcome.CONNECTION_FAILED, AttemptOutcome.TLS_FAILED, AttemptOutcome.TIMEOUT}
)


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
    """Prepare a tenant's target; `user_agent` is `hookline/<version>`.

    `identity` is the client certificate for its https servers.

    Raises ValueError if a URL or a header violates the grammar of `domain/target.py`: the API
    should have rejected it, and a line break in it would forge a request.
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
    """Prepare the URLs of a target; raise as `prepare_target` does."""
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
        on each connection: if it returns False nothing is sent, and the outcome is INTERNAL_ERROR.
        `extra_headers` (such as `traceparent`) are sent unchanged.
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
                return await self._outcome_of(response, endpoint, began)
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

    async def _outcome_of(
        self, response: httpx.Response, endpoint: Endpoint, began: float
    ) -> Outcome:
        """Return the outcome of a response: its status decides."""
        status = response.status_code
        remote_address: str | None = response.extensions.get("remote_address")
        if 200 <= status < 300:  # noqa: PLR2004 - 2xx is what success is called
            if not isinstance(response.stream, httpx.ByteStream):
                await response.aclose()
            record = AttemptRecord(
                AttemptOutcome.ACCEPTED,
                self._latency_us(began),
                endpoint.url,
                status,
                remote_address=remote_address,
            )
            return Outcome(Verdict.ACCEPTED, record)
        latency_us = self._latency_us(began)
        record = AttemptRecord(
            AttemptOutcome.HTTP_ERROR,
            latency_us,
            endpoint.url,
            status,
            "the target answered 410 Gone" if status == GONE else f"the target answered {status}",
            await _excerpt_of(response),
            remote_address,
        )
        return Outcome(_verdict_of(status), record, self._retry_after_s(response))

    def _retry_after_s(self, response: httpx.Response) -> float | None:
        for name, value in response.headers.raw:
            if name.lower() == b"retry-after":
                return parse_retry_after(value, self._unix_s())
        return None

    def _failed(self, failure: AttemptFailure, endpoint: Endpoint, began: float) -> Outcome:
        record = AttemptRecord(
            failure.kind,
            self._latency_us(began),
            endpoint.url,
            error=failure.message,
            remote_address=failure.remote_address,
        )
        is_ours = failure.kind is AttemptOutcome.INTERNAL_ERROR
        return Outcome(Verdict.INTERNAL_ERROR if is_ours else Verdict.RETRYABLE, record)

    def _latency_us(self, began: float) -> int:
        return int((self._monotonic_s() - began) * 1_000_000)


async def _excerpt_of(response: httpx.Response) -> bytes:
    """Return the first bytes of a response's body, not decoded."""
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
    """Translate the errors of another httpx transport."""
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


def _verdict_of(status: int) -> Verdict:
    """Return the verdict of a status that is not 2xx."""
    if status == GONE:
        return Verdict.GONE
    return Verdict.THROTTLED if status in THROTTLES else Verdict.RETRYABLE


class HttpTargetSender:
    """The `TargetSender` of one subscription with an HTTP target."""

    __slots__ = ("_payload_format", "_webhooks", "target")

    def __init__(
        self, webhooks: WebhookSender, target: PreparedTarget, payload_format: PayloadFormat
    ) -> None:
        self._webhooks = webhooks
        self.target = target
        self._payload_format = payload_format

    @property
    def destination(self) -> str:
        """The target's URL."""
        return self.target.endpoints[0].url

    @property
    def memory_bytes(self) -> int:
        """The approximate memory of the prepared target, in bytes."""
        endpoints = self.target.endpoints
        headers = [header for endpoint in endpoints for header in endpoint.headers]
        texts = sum(len(name) + len(value) + HEADER_BYTES for name, value in headers)
        return ENDPOINT_BYTES * len(endpoints) + texts

    def send(self, job: SendJob) -> Coroutine[Any, Any, Outcome]:
        """Sign the event's payload, send it and classify the response."""
        message, traceparent = job.message, job.traceparent
        return self._webhooks.send(
            self.target,
            message.webhook_id,
            job.start_us // 1_000_000,
            message.payload(self._payload_format),
            job.may_send,
            None if traceparent is None else [(TRACEPARENT, traceparent)],
        )


class HttpSenders:
    """Makes the senders of subscriptions with HTTP targets; a `SenderFactory`."""

    def __init__(self, webhooks: WebhookSender, *, user_agent: str) -> None:
        self._webhooks = webhooks
        self._user_agent = user_agent

    def __call__(
        self, subscription: Subscription, credentials: TargetCredentials
    ) -> HttpTargetSender:
        """Prepare the target; raise ValueError if a URL, a header or a secret is invalid."""
        target = prepare_target(
            subscription.target,
            Signer([parse_secret(text) for text in credentials.signing_secrets]),
            user_agent=self._user_agent,
            tenant_id=subscription.tenant_id,
            secret_headers=credentials.headers,
            identity=ClientIdentity(*credentials.certificate) if credentials.certificate else None,
        )
        return HttpTargetSender(self._webhooks, target, subscription.payload_format)
