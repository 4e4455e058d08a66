"""Construction of the API: a servicer for each service of the contract, and what it calls."""

from __future__ import annotations

from hookline_service import VERSION
from hookline_service.api.access.service import AccessServicer
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.deliveries.service import DeliveryServicer
from hookline_service.api.event_types.service import EventTypeServicer
from hookline_service.api.events.service import EventServicer
from hookline_service.api.operations.service import OperationsServicer
from hookline_service.api.server import Servicers
from hookline_service.api.subscriptions.conversion import SubscriptionReader
from hookline_service.api.subscriptions.service import SubscriptionServicer
from hookline_service.api.tenants.service import TenantServicer
from hookline_service.app.authenticator import Authenticator
from hookline_service.app.engine import Engine
from hookline_service.config import Settings
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.database import Database
from hookline_service.store.deliveries import DeliveryStore
from hookline_service.store.events import EventStore
from hookline_service.store.status import StatusStore
from hookline_service.store.subscriptions import Subscriptions
from hookline_service.store.tenants import Tenants


def make_servicers(
    settings: Settings,
    database: Database,
    engine: Engine,
    secrets: TenantSecrets,
    authenticator: Authenticator,
    *,
    page_key: bytes,
) -> Servicers:
    """Return all servicers. `page_key` signs page tokens, and is the deployment's."""
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
            test_events=engine.test_events,
            target_handshakes=engine.target_handshakes,
            reader=SubscriptionReader(
                limits=limits, egress=settings.egress.policy, https_only=settings.is_https_only
            ),
            pages=pages,
            limits=limits,
        ),
        deliveries=DeliveryServicer(
            deliveries=deliveries,
            delivery_actions=engine.delivery_actions,
            lanes=engine.lanes,
            pages=pages,
        ),
        operations=OperationsServicer(
            status=StatusStore(database),
            lanes=engine.lanes,
            version=VERSION,
            node_id=lambda: engine.ownership.node_id,
            sources=authenticator.source_watcher.states,
        ),
        access=AccessServicer(
            keys=authenticator.api_keys,
            forget=authenticator.api_key_source.forget,
            log=engine.audit_log,
            pages=pages,
            limits=limits,
        ),
        audit_log=engine.audit_log,
    )
