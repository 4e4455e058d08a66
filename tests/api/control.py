"""The control plane over a real channel: its servicers on a running node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc

from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest, PublishResult
from hookline.v1.event_service_pb2_grpc import EventServiceStub
from hookline.v1.event_type_service_pb2_grpc import EventTypeServiceStub
from hookline.v1.subscription_pb2 import Subscription
from hookline.v1.subscription_service_pb2 import (
    CreateSubscriptionRequest,
    CreateSubscriptionResponse,
    DeleteSubscriptionRequest,
    GetSubscriptionRequest,
    ListSubscriptionsRequest,
    ListSubscriptionsResponse,
    PauseSubscriptionRequest,
    ResumeSubscriptionRequest,
    RotateSigningSecretRequest,
    RotateSigningSecretResponse,
    UpdateSubscriptionRequest,
)
from hookline.v1.subscription_service_pb2_grpc import SubscriptionServiceStub
from hookline.v1.target_pb2 import HttpTarget
from hookline.v1.tenant_service_pb2_grpc import TenantServiceStub
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.event_types.service import EventTypeServicer
from hookline_service.api.middleware.authentication import Anonymous, IdentitySource
from hookline_service.api.server import ApiServer
from hookline_service.api.subscriptions.conversion import SubscriptionReader
from hookline_service.api.subscriptions.service import SubscriptionServicer
from hookline_service.api.tenants.service import TenantServicer
from hookline_service.domain.errors import AlreadyExistsError
from hookline_service.domain.limits import Limits
from hookline_service.pipeline.actions.target_handshakes import TargetHandshakes
from hookline_service.store.deliveries import DeliveryStore
from hookline_service.store.event_types import EventTypes
from hookline_service.store.subscriptions import Subscriptions
from hookline_service.store.tenants import Tenants
from hookline_service.targets.http.egress import EgressPolicy, parse_hosts, parse_networks
from hookline_service.targets.http.handshake import Handshake
from tests.api.conftest import CLIENT_OPTIONS, PAGE_KEY, servicers_of
from tests.api.refusals import Refused, refusal
from tests.pipeline.rig import Rig, running

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ORDERS = "tenants/acme/subscriptions/orders"
URL = "https://example.com/hook"
ORIGIN = "hookline.example"
"""The origin that handshakes send to targets."""


def orders(**fields: Any) -> Subscription:  # noqa: ANN401 (any field)
    """Return a valid subscription, changed by the given fields."""
    values: dict[str, Any] = {"event_types": ["order.*"], "http": HttpTarget(url=URL)}
    return Subscription(**(values | fields))


def http(**fields: Any) -> HttpTarget:  # noqa: ANN401 (any field)
    """Return a valid target, changed by the given fields."""
    return HttpTarget(**({"url": URL} | fields))


@dataclass
class Control:
    """A channel to the control plane and the node that serves it."""

    channel: grpc.aio.Channel
    rig: Rig

    @property
    def tenants(self) -> TenantServiceStub:
        return TenantServiceStub(self.channel)

    @property
    def event_types(self) -> EventTypeServiceStub:
        return EventTypeServiceStub(self.channel)

    @property
    def subscriptions(self) -> SubscriptionServiceStub:
        return SubscriptionServiceStub(self.channel)

    async def create(
        self,
        subscription: Subscription | None = None,
        subscription_id: str = "orders",
        tenant: str = "tenants/acme",
        **fields: Any,  # noqa: ANN401 (any field of the request)
    ) -> CreateSubscriptionResponse:
        return await self.subscriptions.CreateSubscription(
            CreateSubscriptionRequest(
                tenant=tenant,
                subscription_id=subscription_id,
                subscription=orders() if subscription is None else subscription,
                **fields,
            )
        )

    async def get(self, name: str = ORDERS) -> Subscription:
        request = GetSubscriptionRequest(name=name)
        return (await self.subscriptions.GetSubscription(request)).subscription

    async def update(
        self,
        subscription: Subscription,
        paths: Sequence[str] = (),
        name: str = ORDERS,
        **fields: Any,  # noqa: ANN401 (any field of the request)
    ) -> Subscription:
        request = UpdateSubscriptionRequest(subscription=subscription, **fields)
        request.subscription.name = name
        request.update_mask.paths.extend(paths)
        return (await self.subscriptions.UpdateSubscription(request)).subscription

    async def delete(self, name: str = ORDERS, etag: str = "") -> None:
        request = DeleteSubscriptionRequest(name=name, etag=etag)
        await self.subscriptions.DeleteSubscription(request)

    async def pause(self, name: str = ORDERS) -> Subscription:
        request = PauseSubscriptionRequest(name=name)
        return (await self.subscriptions.PauseSubscription(request)).subscription

    async def resume(self, **fields: Any) -> Subscription:  # noqa: ANN401 (any field)
        request = ResumeSubscriptionRequest(**({"name": ORDERS} | fields))
        return (await self.subscriptions.ResumeSubscription(request)).subscription

    async def rotate(self, **fields: Any) -> RotateSigningSecretResponse:  # noqa: ANN401 (any field)
        request = RotateSigningSecretRequest(**({"name": ORDERS} | fields))
        return await self.subscriptions.RotateSigningSecret(request)

    async def page(self, **fields: Any) -> ListSubscriptionsResponse:  # noqa: ANN401 (any field)
        request = ListSubscriptionsRequest(**({"tenant": "tenants/acme"} | fields))
        return await self.subscriptions.ListSubscriptions(request)

    async def publish(self, event_type: str = "order.created") -> PublishResult:
        request = PublishEventsRequest(
            tenant="tenants/acme", events=[Event(type=event_type, json_data="{}")]
        )
        return (await EventServiceStub(self.channel).PublishEvents(request)).results[0]


@asynccontextmanager
async def controlling(
    url: str,
    *,
    limits: Limits | None = None,
    https_only: bool = False,
    allow: Sequence[str] = ("127.0.0.0/8",),
    identities: Sequence[IdentitySource] = (Anonymous(),),
    deny_hosts: Sequence[str] = (),
    **replaced: Any,  # noqa: ANN401 (any servicer)
) -> AsyncIterator[Control]:
    """Run a server with a tenant `acme` inside the context."""
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(running(url, limits=limits or Limits()))
        pages = Pages(PAGE_KEY, rig.limits)
        egress = EgressPolicy(parse_networks(allow), deny_hosts=parse_hosts(deny_hosts))
        tenants = Tenants(rig.database)
        servicers = servicers_of(
            rig,
            tenants=TenantServicer(tenants=tenants, pages=pages, limits=rig.limits),
            event_types=EventTypeServicer(
                event_types=EventTypes(rig.database),
                schemas=rig.schemas,
                changes=rig.changes,
                pages=pages,
                limits=rig.limits,
            ),
            subscriptions=SubscriptionServicer(
                subscriptions=Subscriptions(rig.database, rig.secrets),
                deliveries=DeliveryStore(rig.database),
                changes=rig.changes,
                test_events=rig.test_events,
                target_handshakes=TargetHandshakes(
                    rig.database,
                    rig.secrets,
                    Handshake(rig.transport, ORIGIN),
                    user_agent="hookline/0.0.0",
                ),
                reader=SubscriptionReader(rig.limits, egress, https_only=https_only),
                pages=pages,
                limits=rig.limits,
            ),
            **replaced,
        )
        server = ApiServer(
            servicers, address="127.0.0.1:0", limits=rig.limits, identities=identities
        )
        port = await server.start()
        stack.push_async_callback(server.stop, 0)
        await server.set_serving(True)
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", CLIENT_OPTIONS)
        )
        with suppress(AlreadyExistsError):
            await tenants.create("acme", "", {})
        yield Control(channel, rig)


async def refused_both_ways(control: Control, **fields: Any) -> Refused:  # noqa: ANN401 (any field)
    """Return the refusal of a creation with these fields; an update must get the same one."""
    before = await control.get()
    creating = await refusal(control.create(orders(**fields), "new"))
    assert creating.code == INVALID
    updating = await refusal(control.update(orders(**fields), ["*"]))
    assert (updating.code, updating.violations) == (INVALID, creating.violations)
    assert await control.get() == before
    return creating
