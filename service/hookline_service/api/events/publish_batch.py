"""Reads a batch of events and creates its response.

A batch is a PublishEvents call or one message of a StreamPublishEvents call.
"""

from __future__ import annotations

from collections.abc import Sequence

from hookline.v1.event_service_pb2 import (
    PublishEventsRequest,
    PublishEventsResponse,
    StreamPublishEventsRequest,
)
from hookline_service.api.conversion.names import tenant_id_in
from hookline_service.api.events.conversion import EventReader
from hookline_service.domain.errors import Reason, Violation, invalid, over_limit
from hookline_service.domain.event import NewEvent
from hookline_service.domain.ids import EVENT_ID, format_type_id
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import event_name
from hookline_service.pipeline.publishing.publish import Published


class BatchReader:
    """Reads batches; rejects a batch as a whole if any part of it is invalid."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._reader = EventReader(limits)

    def read(
        self,
        request: PublishEventsRequest | StreamPublishEventsRequest,
        violations: Sequence[Violation] = (),
    ) -> tuple[str, list[NewEvent]]:
        """Return the tenant id and the events, in order.

        `violations` were found before. Raises `InvalidArgumentError` with them and all others, and
        `UnimplementedError` for `proto_data`.
        """
        found = list(violations)
        tenant_id = tenant_id_in(request.tenant, found)
        self._check_size(request, found)
        if found:
            raise invalid(found)
        events = self._reader.read(request.events, found)
        if found:
            raise invalid(found)
        return tenant_id, events

    def _check_size(
        self,
        request: PublishEventsRequest | StreamPublishEventsRequest,
        violations: list[Violation],
    ) -> None:
        """Check the limits of a batch before its events are read."""
        count = len(request.events)
        if not count:
            violations.append(Violation("events", "is required", Reason.FIELD_REQUIRED))
        limit = self._limits.max_batch_events
        if count > limit:
            setting = "HOOKLINE_MAX_BATCH_EVENTS"
            violations.append(over_limit("events", count, "events", setting, limit))
        size, limit = request.ByteSize(), self._limits.max_batch_bytes
        if size > limit:
            setting = "HOOKLINE_MAX_BATCH_BYTES"
            violations.append(over_limit("events", size, "bytes", setting, limit))


def response_of(tenant_id: str, results: Sequence[Published]) -> PublishEventsResponse:
    """Return the response for a committed batch."""
    prefix = event_name(tenant_id, "")
    response = PublishEventsResponse()
    for result in results:
        response.results.add(
            name=prefix + format_type_id(EVENT_ID, result.event_id),
            deduplicated=result.deduplicated,
            delivery_count=result.delivery_count,
        )
    return response
