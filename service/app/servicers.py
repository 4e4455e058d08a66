"""The API, put together: a servicer for each service of the contract, with what it calls."""

from __future__ import annotations

from service import VERSION
from service.api.access_service import AccessServicer
from service.api.convert_subscription import SubscriptionReader
from service.api.delivery_service import DeliveryServicer
from service.api.event_service import EventServicer
from service.api.event_type_service import EventTypeServicer
from service.api.operations_service import OperationsServicer
from service.api.paging import Pages
from service.api.server import Servicers
from service.api.subscription_service import SubscriptionServicer
from service.api.tenant_service import TenantServicer
from service.app.door import Door
from service.app.engine import Engine
from service.config import Settings
from service.store.data_keys import TenantSecrets
from service.store.database import Database
from service.store.deliveries import DeliveryStore
from service.store.events import EventStore
from service.store.status import StatusStore
from service.store.subscriptions import Subscriptions
from service.store.tenants import Tenants


def make_servicers(
    settings: Settings,
    database: Database,
    engine: Engine,
    secrets: TenantSecrets,
    door: Door,
    *,
    page_key: bytes,
) -> Servicers:
    """All of them. `page_key` signs page tokens, and is the deployment's."""
    limits, pages = settings.limits, Pages(page_key, settings.limits)
    deliveries = DeliveryStore(database)
    return Servicers(
        tenants=TenantServicer(tenants=Tenants(database), pages=pages, limits=limits),
        event_types=EventTypeServicer(
            event_types=engine.event_types,
            schemas=engine.schemas,
            changes=engine.changes,
            pages=pages,
            limits=limits,
        ),
        events=EventServicer(
            publisher=engine.publisher, events=EventStore(database), pages=pages, limits=limits
        ),
        subscriptions=SubscriptionServicer(
            subscriptions=Subscriptions(database, secrets),
            deliveries=deliveries,
            changes=engine.changes,
            trial=engine.trial,
            consents=engine.consents,
            reader=SubscriptionReader(
                limits=limits, egress=settings.egress.policy, https_only=settings.is_https_only
            ),
            pages=pages,
            limits=limits,
        ),
        deliveries=DeliveryServicer(
            deliveries=deliveries, operator=engine.operator, lanes=engine.lanes, pages=pages
        ),
        operations=OperationsServicer(
            status=StatusStore(database),
            lanes=engine.lanes,
            version=VERSION,
            node_id=lambda: engine.ownership.node_id,
            sources=door.following.states,
        ),
        access=AccessServicer(
            keys=door.api_keys,
            forget=door.api_key_source.forget,
            log=engine.audit_log,
            pages=pages,
            limits=limits,
        ),
        journal=engine.audit_log,
    )
