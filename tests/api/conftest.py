"""The API over a real channel: a real server on loopback, its servicers on a running node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn

import grpc
import pytest

from hookline.v1 import subscription_service_pb2_grpc
from hookline.v1 import tenant_service_pb2_grpc as tenants_grpc
from hookline.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from hookline.v1.event_service_pb2_grpc import EventServiceStub
from hookline.v1.operations_service_pb2_grpc import OperationsServiceStub
from hookline_service.api.access.service import AccessServicer
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.deliveries.service import DeliveryServicer
from hookline_service.api.events.service import EventServicer
from hookline_service.api.middleware.authentication import Anonymous, IdentitySource
from hookline_service.api.middleware.call_observer import CallObserver
from hookline_service.api.middleware.errors import not_implemented
from hookline_service.api.middleware.interceptors import MAX_CALLS_DEFAULT
from hookline_service.api.operations.service import OperationsServicer
from hookline_service.api.server import ApiServer, Servicers
from hookline_service.api.unimplemented import UnbuiltEventTypeRpcs
from hookline_service.domain.limits import Limits
from hookline_service.identity.files import SourceState
from hookline_service.store.api_keys import ApiKeys
from hookline_service.store.audit import AuditLog
from hookline_service.store.deliveries import DeliveryStore
from hookline_service.store.events import EventStore
from hookline_service.store.status import StatusStore
from tests.pipeline.rig import Receiver, Rig, running
from tests.store.rows import Rows, rows_in

VERSION = "1.2.3"
PAGE_KEY = b"a key of every node"
SOURCE = SourceState(
    setting="HOOKLINE_TLS_CERT",
    summary="certificate of hookline.internal",
    loaded_at=datetime(2026, 11, 24, 8, 30, tzinfo=UTC),
    expires_at=datetime(2027, 2, 22, 8, 30, tzinfo=UTC),
    problem="",
)
DEPLOYMENT_KEY = b"d" * 32


@dataclass
class Calls:
    """Observer that records the calls that ended, in order."""

    ended: list[tuple[str, grpc.StatusCode]] = field(default_factory=list)

    def call_began(self, method: str, context: object) -> None:
        """Ignore the event."""

    def call_ended(self, method: str, code: grpc.StatusCode, duration_s: float) -> None:
        assert duration_s >= 0
        self.ended.append((method, code))


@dataclass
class Api:
    """A server and a channel to it."""

    server: ApiServer
    channel: grpc.aio.Channel
    calls: Calls
    port: int
    rig: Rig
    rows: Rows

    @property
    def events(self) -> EventServiceStub:
        return EventServiceStub(self.channel)

    @property
    def deliveries(self) -> DeliveryServiceStub:
        return DeliveryServiceStub(self.channel)

    @property
    def operations(self) -> OperationsServiceStub:
        return OperationsServiceStub(self.channel)


def refusing(base: Any) -> Any:  # noqa: ANN401 (any generated servicer)
    """A servicer without methods."""

    async def refuse(*_: object) -> NoReturn:
        raise not_implemented("this method")

    generated = base.__mro__[-2]
    methods = [name for name in vars(generated) if not name.startswith("_")]
    methods = [name for name in methods if getattr(base, name) is getattr(generated, name)]
    return type(f"Refusing{base.__name__}", (base,), dict.fromkeys(methods, refuse))()


def servicers_of(rig: Rig, **replaced: Any) -> Servicers:  # noqa: ANN401 (any servicer)
    """The servicers of a node; those that other tests cover refuse every call."""
    pages = Pages(PAGE_KEY, rig.limits)
    by_field: dict[str, Any] = {
        "tenants": refusing(tenants_grpc.TenantServiceServicer),
        "event_types": refusing(UnbuiltEventTypeRpcs),
        "subscriptions": refusing(subscription_service_pb2_grpc.SubscriptionServiceServicer),
        "audit_log": AuditLog(rig.database),
        "access": AccessServicer(
            keys=ApiKeys(rig.database, DEPLOYMENT_KEY),
            forget=lambda _: None,
            log=AuditLog(rig.database),
            pages=pages,
            limits=rig.limits,
        ),
        "events": EventServicer(
            publisher=rig.publisher,
            events=EventStore(rig.database),
            pages=pages,
            limits=rig.limits,
        ),
        "deliveries": DeliveryServicer(
            deliveries=DeliveryStore(rig.database),
            delivery_actions=rig.delivery_actions,
            lanes=rig.lanes,
            pages=pages,
        ),
        "operations": OperationsServicer(
            status=StatusStore(rig.database),
            lanes=rig.lanes,
            version=VERSION,
            node_id=lambda: rig.ownership.node_id,
            sources=lambda: [SOURCE],
        ),
    }
    return Servicers(**(by_field | replaced))


@asynccontextmanager
async def serving(
    url: str,
    *,
    limits: Limits | None = None,
    max_calls: int = MAX_CALLS_DEFAULT,
    identities: Sequence[IdentitySource] = (Anonymous(),),
    observer: CallObserver | None = None,
    **replaced: Any,  # noqa: ANN401 (any servicer)
) -> AsyncIterator[Api]:
    """Run a server with its own database inside the context."""
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(running(url, limits=limits or Limits()))
        calls = Calls()
        server = ApiServer(
            servicers_of(rig, **replaced),
            address="127.0.0.1:0",
            limits=rig.limits,
            identities=identities,
            max_calls=max_calls,
            observer=observer or calls,
        )
        port = await server.start()
        stack.push_async_callback(server.stop, 0)
        await server.set_serving(True)
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", CLIENT_OPTIONS)
        )
        rows = await stack.enter_async_context(rows_in(url))
        yield Api(server, channel, calls, port, rig, rows)


CLIENT_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # What a test sees is the answer of the call it made, never that of a silent repetition.
    ("grpc.enable_retries", 0),
    # Each test has servers of its own; a channel must not be another test's.
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    """A running server with a tenant `acme`."""
    async with serving(database_url) as api:
        await api.rows.tenant("acme")
        yield api


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver
