"""The gRPC server: its services, its options, and what health reports.

It starts unready: health answers NOT_SERVING until `set_serving(True)`. The order of a stop is the
composition root's (health, lanes, calls, records, leases); the steps that are gRPC's are here.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from hookline.v1 import (
    access_service_pb2_grpc,
    delivery_service_pb2_grpc,
    event_service_pb2_grpc,
    event_type_service_pb2_grpc,
    operations_service_pb2_grpc,
    subscription_service_pb2_grpc,
    tenant_service_pb2_grpc,
)
from hookline_service.api import reflection
from hookline_service.api.health import HealthServicer
from hookline_service.api.middleware.admission import Admission
from hookline_service.api.middleware.audit_policy import AuditLog
from hookline_service.api.middleware.authentication import Identities, IdentitySource
from hookline_service.api.middleware.byte_budget import ByteBudget
from hookline_service.api.middleware.call_observer import CallObserver
from hookline_service.api.middleware.interceptors import MAX_CALLS_DEFAULT, CallGuard
from hookline_service.api.middleware.methods import METHODS, SERVICES, check_registry
from hookline_service.api.middleware.unread_answers import UnreadAnswers
from hookline_service.domain.limits import Limits

_PACKAGE = "hookline.v1"
CONTRACT_SERVICES: tuple[str, ...] = tuple(
    name for name, service in SERVICES.items() if service.file.package == _PACKAGE
)

RECEIVE_HEADROOM_BYTES = 256 * 1024
METADATA_HEADROOM_BYTES = 16 * 1024
STREAM_WINDOW_BYTES = 16 * 1024
"""How much of a message gRPC's core holds before the message is read."""
READ_BUFFER_BYTES = 64 * 1024
"""How much gRPC's core reads from one connection at once."""
_IDENTITY_ONLY = 1
"""A bit for each algorithm (grpc_compression_algorithm); the first is no compression."""
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000


class CannotListenError(Exception):
    """The address is in use, or is not one of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servicers:
    """One servicer for each service of the contract, and the log of privileged reads."""

    tenants: tenant_service_pb2_grpc.TenantServiceServicer
    event_types: event_type_service_pb2_grpc.EventTypeServiceServicer
    events: event_service_pb2_grpc.EventServiceServicer
    subscriptions: subscription_service_pb2_grpc.SubscriptionServiceServicer
    deliveries: delivery_service_pb2_grpc.DeliveryServiceServicer
    access: access_service_pb2_grpc.AccessServiceServicer
    operations: operations_service_pb2_grpc.OperationsServiceServicer
    audit_log: AuditLog


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
        """Raise `MethodRegistryError` for an RPC without an entry in the registry of methods.

        `identities`: the sources of identity, in the order in which they are asked; without any, no
        caller is authenticated. `share_port`: several processes of this service listen on one port.
        """
        check_registry(SERVICES, METHODS)
        self._address = address
        self._credentials = credentials
        answers = ByteBudget("answers", "HOOKLINE_MAX_ANSWER_BYTES", limits.max_answer_bytes)
        self._guard = CallGuard(
            Identities(identities),
            servicers.audit_log,
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
        reflecting = reflection.ReflectionServicer(reflection.contract(), tuple(SERVICES))
        self._server.add_generic_rpc_handlers([self._health.handlers(), *reflecting.handlers()])

    async def start(self) -> int:
        """Listen, unready, and return the port. Raise `CannotListenError`."""
        await self.set_serving(False)
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(self._address)
            else:
                port = self._server.add_secure_port(self._address, self._credentials)
        except RuntimeError as error:
            raise CannotListenError(
                f"cannot listen on {self._address}: it is in use, or not an address of this machine"
            ) from error
        await self._server.start()
        return port

    async def set_serving(self, serving: bool) -> None:  # noqa: FBT001 (it reads as what it does)
        """Set what health answers, for the whole server and for each service of the contract."""
        self._health.set_serving(serving)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, end streams; end the running calls after `grace_s` seconds."""
        self._guard.end_streams()
        await self._server.stop(grace_s)


def _options(limits: Limits, *, share_port: bool) -> list[tuple[str, int]]:
    metadata_bytes = limits.max_metadata_bytes + METADATA_HEADROOM_BYTES
    return [
        # On by default: a second server on the port would silently receive half of the calls.
        ("grpc.so_reuseport", int(share_port)),
        # gRPC's core refuses larger messages without details, and metadata between its two bounds
        # at random; the settings' limits lie well below both, those of single fields too.
        ("grpc.max_receive_message_length", limits.max_message_bytes + RECEIVE_HEADROOM_BYTES),
        ("grpc.max_send_message_length", -1),
        # gRPC's core decompresses a message before its caller is authenticated: 8 KB became 8 MB.
        # A compressed message is refused with UNIMPLEMENTED, and answers are not compressed.
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
        # What a stream may send before it is read: with bandwidth probing the core grants 4 MiB.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
        # The read buffer of a connection. Without this bound the core doubles it while more arrives
        # than fits, and other connections wait until a flood is read.
        ("grpc.experimental.tcp_max_read_buffer_size", READ_BUFFER_BYTES),
        ("grpc.max_metadata_size", metadata_bytes),
        ("grpc.absolute_max_metadata_size", metadata_bytes + METADATA_HEADROOM_BYTES),
        ("grpc.max_concurrent_streams", limits.max_streams_per_connection),
        # On by default: the core also counts answered calls that it has not freed yet, and refuses
        # a client that keeps to the limit above. Pending calls bound what it protects from.
        ("grpc.http.overload_protection", 0),
        # Calls that wait for the event loop. The core drops more than these with a bare CANCELLED,
        # and by default drops calls at random from a third of the limit on.
        ("grpc.server.max_pending_requests", limits.max_pending_calls),
        ("grpc.server.max_pending_requests_hard_limit", limits.max_pending_calls),
        # Connections are opened before any caller is authenticated.
        ("grpc.max_allowed_incoming_connections", _connections_max(limits)),
        ("grpc.max_connection_idle_ms", limits.max_connection_idle_s * 1_000),
        # Clients reconnect at this age: so connections spread over processes that started later,
        # and client certificates are checked again. Jitter: each ends up to 10 % sooner or later.
        ("grpc.max_connection_age_ms", limits.max_connection_age_s * 1_000),
        ("grpc.max_connection_age_grace_ms", limits.connection_grace_s * 1_000),
        ("grpc.server_handshake_timeout_ms", limits.handshake_timeout_s * 1_000),
        # Detects a client that vanished, and keeps a watch through a proxy alive.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", limits.min_ping_interval_s * 1_000),
    ]


def _connections_max(limits: Limits) -> int:
    """Return the bound that leaves half of the descriptors to the database, targets and files."""
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
