"""The client: one channel, a deadline for every call, typed errors, and repeatable publishing.

Theory of operation. `publish` is at-least-once, because it repeats calls without a response, and
creates exactly one fan-out, because each event keeps its idempotency key. It adds a key to every
event that has none, and repeats the call with the same keys until a response arrives or the
deadline has passed. No other call is repeated: those are the generated stubs with a default
deadline and typed errors.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc

from hookline.batching import BatchingPublisher
from hookline.errors import HooklineError, error_of
from hookline.keys import KeySource
from hookline.metadata import stream_interceptors, with_metadata
from hookline.pending import Bounds
from hookline.repeating import MAX_BACKOFF_S, MIN_BACKOFF_S, wait_before_repeating
from hookline.tls import Tls
from hookline.tracing import publishing
from hookline.v1.access_service_pb2_grpc import AccessServiceStub
from hookline.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest, PublishResult
from hookline.v1.event_service_pb2_grpc import EventServiceStub
from hookline.v1.event_type_service_pb2_grpc import EventTypeServiceStub
from hookline.v1.operations_service_pb2_grpc import OperationsServiceStub
from hookline.v1.subscription_service_pb2_grpc import SubscriptionServiceStub
from hookline.v1.tenant_service_pb2_grpc import TenantServiceStub

DEFAULT_TARGET: Final = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S: Final = 10.0
"""The default deadline of a call, and of one try of `publish`, in seconds."""
DEFAULT_PUBLISH_TIMEOUT_S: Final = 30.0
"""How long `publish` repeats the call, in seconds."""

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # Reconnect to a restarted service within a second; grpc's default backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # The service rejects compressed messages: decompression takes memory before authentication.
    ("grpc.default_compression_algorithm", 0),
)
_NO_PROXY: tuple[tuple[str, int], ...] = (("grpc.enable_http_proxy", 0),)
"""For loopback targets: grpc would use `http_proxy` for them, too."""

Request = TypeVar("Request")
Response = TypeVar("Response")


class HooklineClient:
    """A client for Hookline; `async with HooklineClient(target) as client: …`.

    `tenants`, `event_types`, `events`, `subscriptions`, `deliveries`, `operations` and `access` are
    the services of the contract, with a typed coroutine for each RPC. A call without a `timeout`
    gets the default one. Unary calls raise `hookline.errors.HooklineError`. Streams raise the
    errors of grpc, which `hookline.errors.error_of` converts, and have no default deadline.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        token: str | None = None,
        tls: Tls | grpc.ChannelCredentials | None = None,
        plaintext: bool | None = None,
        token_in_plaintext: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        publish_timeout_s: float = DEFAULT_PUBLISH_TIMEOUT_S,
    ) -> None:
        """Create a client; it connects with the first call.

        `target` is `HOST:PORT` or any gRPC target. The connection uses TLS with the settings of
        `tls` (default: the root certificates of the system), or plaintext; by default plaintext is
        used only for this machine. `token` (`hk_…`) is sent with every call. Raises ValueError if
        the token would be sent in plaintext to another machine without `token_in_plaintext`, if
        `tls` is given for a plaintext connection, or if only one of `cert_file` and `key_file` is
        given; raises OSError if a file of `tls` cannot be read.
        """
        is_local = _is_loopback(target)
        if plaintext is None:
            plaintext = is_local and tls is None
        if plaintext and tls is not None:
            raise ValueError("`tls` cannot be combined with `plaintext=True`: omit one")
        if plaintext and token is not None and not is_local and not token_in_plaintext:
            raise ValueError(
                "`token` would be sent in plaintext to another machine: use `tls`, or set"
                " `token_in_plaintext=True`"
            )
        interceptors: list[grpc.aio.ClientInterceptor] = [_Deadlines(timeout_s, token)]
        interceptors += stream_interceptors(token)
        options: tuple[tuple[str, int | str], ...] = _CHANNEL_OPTIONS
        options += _NO_PROXY if is_local else ()
        if plaintext:
            channel = grpc.aio.insecure_channel(target, options, interceptors=interceptors)
        else:
            if tls is None:
                tls = Tls()
            if isinstance(tls, Tls):
                options += tls.channel_options()
                tls = tls.credentials()
            channel = grpc.aio.secure_channel(target, tls, options, interceptors=interceptors)
        self.target = target
        self.channel = channel
        """For stubs of other services, such as health."""
        self.tenants = TenantServiceStub(channel)
        self.event_types = EventTypeServiceStub(channel)
        self.events = EventServiceStub(channel)
        self.subscriptions = SubscriptionServiceStub(channel)
        self.deliveries = DeliveryServiceStub(channel)
        self.operations = OperationsServiceStub(channel)
        self.access = AccessServiceStub(channel)
        self._timeout_s = timeout_s
        self._publish_timeout_s = publish_timeout_s
        self._keys = KeySource()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        await self.channel.close()

    async def publish(
        self, tenant: str, events: Iterable[Event], *, timeout_s: float | None = None
    ) -> Sequence[PublishResult]:
        """Publish events of one tenant, all or none; return the results in the order of the events.

        `tenant` is `tenants/ID` or the id. The events are not modified. Transient errors are
        repeated for at most `timeout_s` seconds; then the last error is raised
        (`UnavailableError`, `DeadlineExceededError`, …). To repeat a failed `publish` safely, set
        the idempotency keys of the events yourself.
        """
        name = tenant if "/" in tenant else f"tenants/{tenant}"
        request = PublishEventsRequest(tenant=name, events=events)
        for event in request.events:
            event.idempotency_key = event.idempotency_key or self._keys.next()
        ends_at = time.monotonic() + (self._publish_timeout_s if timeout_s is None else timeout_s)
        backoff_s = MIN_BACKOFF_S
        with publishing(name, len(request.events)):
            while True:
                left_s = ends_at - time.monotonic()
                try:
                    response = await self.events.PublishEvents(
                        request, timeout=max(0.0, min(left_s, self._timeout_s))
                    )
                except HooklineError as error:
                    wait_s = wait_before_repeating(error, backoff_s)
                    if wait_s is None or time.monotonic() + wait_s >= ends_at:
                        raise
                else:
                    return response.results
                await asyncio.sleep(wait_s)
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    def batching(
        self,
        tenant: str,
        *,
        max_events: int = 500,
        max_bytes: int = 1024 * 1024,
        max_delay_ms: float = 5.0,
        max_pending_events: int = 10_000,
        max_pending_bytes: int = 32 * 1024 * 1024,
        timeout_s: float | None = None,
    ) -> BatchingPublisher:
        """Return a publisher that sends single events of one tenant in batches.

            async with client.batching("acme") as publisher:
                result = await publisher.publish(event)  # stored

        A batch is sent when it has `max_events` or `max_bytes`, or when its first event has waited
        `max_delay_ms` milliseconds. One batch is in flight at a time, so events are stored in the
        order in which they were published. While `max_pending_events` or `max_pending_bytes` are
        pending, `publish` waits. An event fails after `timeout_s` seconds, by default the client's
        `publish_timeout_s`. Raises ValueError for a bound below 1 or a negative delay.
        """
        bounds = Bounds(
            max_events=max_events,
            max_bytes=max_bytes,
            max_delay_ms=max_delay_ms,
            max_pending_events=max_pending_events,
            max_pending_bytes=max_pending_bytes,
        )
        return BatchingPublisher(
            self.events,
            tenant,
            bounds,
            timeout_s=self._publish_timeout_s if timeout_s is None else timeout_s,
            try_timeout_s=self._timeout_s,
        )


def _is_loopback(target: str) -> bool:
    """Return whether a target is certainly on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Deadlines(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds the deadline, the token and the trace to unary calls, and converts their errors."""

    def __init__(self, timeout_s: float, token: str | None) -> None:
        self._timeout_s = timeout_s
        self._token = token

    async def intercept_unary_unary(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, Request],
            Awaitable[grpc.aio.UnaryUnaryCall[Request, Response]],
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Request,
    ) -> Response:
        details = with_metadata(client_call_details, self._token, self._timeout_s)
        call = await continuation(details, request)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
