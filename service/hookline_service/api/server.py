"""The gRPC server: which services there are, how it listens, when it says that it serves.

It starts unready: health answers NOT_SERVING until `set_serving(True)`. The order of a stop is the
composition root's (health, lanes, calls, records, leases); the steps that are gRPC's are here.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2

from hookline.v1 import (
    access_service_pb2,
    access_service_pb2_grpc,
    delivery_service_pb2,
    delivery_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
    event_type_service_pb2,
    event_type_service_pb2_grpc,
    operations_service_pb2,
    operations_service_pb2_grpc,
    subscription_service_pb2,
    subscription_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from hookline_service.api import reflection
from hookline_service.api.health import HealthServicer
from hookline_service.api.middleware.admission import Admission
from hookline_service.api.middleware.audit_policy import AuditLog
from hookline_service.api.middleware.authentication import Identities, IdentitySource
from hookline_service.api.middleware.byte_budget import ByteBudget
from hookline_service.api.middleware.interceptors import MAX_CALLS_DEFAULT, CallGuard, CallObserver
from hookline_service.api.middleware.unread_answers import UnreadAnswers
from hookline_service.domain.limits import Limits

CONTRACT_SERVICES: tuple[str, ...] = tuple(
    service.full_name
    for module in (
        access_service_pb2,
        delivery_service_pb2,
        event_service_pb2,
        event_type_service_pb2,
        operations_service_pb2,
        subscription_service_pb2,
        tenant_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

RECEIVE_HEADROOM_BYTES = 256 * 1024
METADATA_HEADROOM_BYTES = 16 * 1024
STREAM_WINDOW_BYTES = 16 * 1024
"""What gRPC's core holds of a message that nobody reads yet."""
READ_BUFFER_BYTES = 64 * 1024
"""What gRPC's core reads of one connection at once."""
_IDENTITY_ONLY = 1
"""A bit for each algorithm (grpc_compression_algorithm); the first is none."""
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000


class CannotListenError(Exception):
    """The address is taken, or is none of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servicers:
    """One servicer for each service of the contract, and where privileged reads are entered."""

    tenants: tenant_service_pb2_grpc.TenantServiceServicer
    event_types: event_type_service_pb2_grpc.EventTypeServiceServicer
    events: event_service_pb2_grpc.EventServiceServicer
    subscriptions: subscription_service_pb2_grpc.SubscriptionServiceServicer
    deliveries: delivery_service_pb2_grpc.DeliveryServiceServicer
    access: access_service_pb2_grpc.AccessServiceServicer
    operations: operations_service_pb2_grpc.OperationsServiceServicer
    journal: AuditLog


class ApiServer:
    """All services of the contract, health and reflection on one address.

    Made, started and stopped in one event loop.
    """

    def __init__(
        self,
        servicers: Servicers,
        *,
        address: str,
        limits: Limits,
        identities: Sequence[IdentitySource],
        credentials: grpc.ServerCredentials | None = None,
        share_port: bool = False,
        max_calls: int = MAX_CALLS_DEFAULT,
        observer: CallObserver | None = None,
    ) -> None:
        """`identities`: who knows callers, in the order in which they are asked; none: nobody does.

        `share_port`: several processes of this service listen on the same port together.
        """
        self._address = address
        self._credentials = credentials
        answers = ByteBudget("answers", "HOOKLINE_MAX_ANSWER_BYTES", limits.max_answer_bytes)
        self._guard = CallGuard(
            Identities(identities),
            servicers.journal,
            Admission(limits, max_calls),
            UnreadAnswers(answers, limits.answer_timeout_s),
            observer,
        )
        self._server = grpc.aio.server(
            interceptors=[self._guard],
            options=_options(limits, share_port=share_port),
        )
        self._health = HealthServicer(CONTRACT_SERVICES)
        _register(servicers, self._server)
        names = (*CONTRACT_SERVICES, _HEALTH, *reflection.SERVICES)
        servicer = reflection.ReflectionServicer(reflection.contract(), names)
        self._server.add_generic_rpc_handlers([self._health.handlers(), *servicer.handlers()])

    async def start(self) -> int:
        """Listen, unready; returns the port. Raises `CannotListenError`."""
        await self.set_serving(False)
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(self._address)
            else:
                port = self._server.add_secure_port(self._address, self._credentials)
        except RuntimeError as error:
            raise CannotListenError(
                f"cannot listen on {self._address}: it is taken, or no address of this machine"
            ) from error
        await self._server.start()
        return port

    async def set_serving(self, serving: bool) -> None:  # noqa: FBT001 (it reads as what it does)
        """What health answers from now on, for the whole and for each service of the contract."""
        self._health.set_serving(serving)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, end streams; end the running calls after `grace_s` seconds."""
        self._guard.end_streams()
        await self._server.stop(grace_s)


def _options(limits: Limits, *, share_port: bool) -> list[tuple[str, int]]:
    metadata_bytes = limits.max_metadata_bytes + METADATA_HEADROOM_BYTES
    return [
        # On by default, and a second server would silently get half of the calls.
        ("grpc.so_reuseport", int(share_port)),
        # gRPC's core refuses without details what is larger, and metadata of between its two
        # bounds by chance; our own limits lie well below both, those of single fields too.
        ("grpc.max_receive_message_length", limits.max_message_bytes + RECEIVE_HEADROOM_BYTES),
        ("grpc.max_send_message_length", -1),
        # gRPC's core unpacks a message before it asks who sent it: 8 KB became 8 MB. A compressed
        # one ends with UNIMPLEMENTED, and nothing that is sent is compressed.
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
        # What a stream may send before it is read: with its own probing the core grants 4 MiB.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
        # What is read of a connection at once, and kept by it. Without this bound the core doubles
        # it while more comes than it takes, and others wait until a flood is read.
        ("grpc.experimental.tcp_max_read_buffer_size", READ_BUFFER_BYTES),
        ("grpc.max_metadata_size", metadata_bytes),
        ("grpc.absolute_max_metadata_size", metadata_bytes + METADATA_HEADROOM_BYTES),
        ("grpc.max_concurrent_streams", limits.max_streams_per_connection),
        # On by default: the core also counts answered calls that it has not freed yet, and refuses
        # a client that keeps to the limit above. What it protects from is bounded by pending calls.
        ("grpc.http.overload_protection", 0),
        # Calls that wait for the event loop. The core drops what is more without a reason (a bare
        # CANCELLED), and by default every call at random from a third of it on.
        ("grpc.server.max_pending_requests", limits.max_pending_calls),
        ("grpc.server.max_pending_requests_hard_limit", limits.max_pending_calls),
        # Whoever reaches the port may open connections, before anybody asks who he is.
        ("grpc.max_allowed_incoming_connections", _connections_max(limits)),
        ("grpc.max_connection_idle_ms", limits.max_connection_idle_s * 1_000),
        # Connections come anew now and then: so they are spread over processes that came later,
        # and a certificate is asked for again. Each ends up to a tenth sooner or later, by chance.
        ("grpc.max_connection_age_ms", limits.max_connection_age_s * 1_000),
        ("grpc.max_connection_age_grace_ms", limits.connection_grace_s * 1_000),
        ("grpc.server_handshake_timeout_ms", limits.handshake_timeout_s * 1_000),
        # A client that vanished without a word is noticed, and a watch through a proxy kept alive.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", limits.min_ping_interval_s * 1_000),
    ]


def _connections_max(limits: Limits) -> int:
    """Half of the descriptors are left for what calls lead to: the database, targets, files."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return limits.max_connections
    return min(limits.max_connections, max(1, descriptors // 2))


def _register(servicers: Servicers, server: grpc.aio.Server) -> None:
    tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(servicers.tenants, server)
    event_type_service_pb2_grpc.add_EventTypeServiceServicer_to_server(
        servicers.event_types, server
    )
    event_service_pb2_grpc.add_EventServiceServicer_to_server(servicers.events, server)
    subscription_service_pb2_grpc.add_SubscriptionServiceServicer_to_server(
        servicers.subscriptions, server
    )
    delivery_service_pb2_grpc.add_DeliveryServiceServicer_to_server(servicers.deliveries, server)
    access_service_pb2_grpc.add_AccessServiceServicer_to_server(servicers.access, server)
    operations_service_pb2_grpc.add_OperationsServiceServicer_to_server(
        servicers.operations, server
    )
