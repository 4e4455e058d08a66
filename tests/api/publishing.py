"""Publish events over a channel."""

from __future__ import annotations

from typing import Any

from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest, PublishEventsResponse
from tests.api.conftest import Api
from tests.api.refusals import Refused, refusal


def order(**fields: Any) -> Event:  # noqa: ANN401 (any field)
    """Return a valid event, changed by the given fields."""
    if "json_data" not in fields and "binary_data" not in fields:
        fields["json_data"] = "{}"
    return Event(**({"type": "order.created"} | fields))


async def publish(api: Api, *events: Event, tenant: str = "tenants/acme") -> PublishEventsResponse:
    return await api.events.PublishEvents(PublishEventsRequest(tenant=tenant, events=events))


async def refused(api: Api, *events: Event, tenant: str = "tenants/acme") -> Refused:
    return await refusal(publish(api, *events, tenant=tenant))
