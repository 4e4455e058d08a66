"""One batch of events on its way in and its answer on the way out.

A call of PublishEvents is one, a message of StreamPublishEvents another; both are read and answered
here.
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
    """Reads batches; refuses a whole one for anything that is wrong with it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._reader = EventReader(limits)

    def read(
        self,
        request: PublishEventsRequest | StreamPublishEventsRequest,
        violations: Sequence[Violation] = (),
    ) -> tuple[str, list[NewEvent]]:
        """The tenant's id and the events, in order.

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
        """Bound the work before it is begun."""
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
    """What a batch that is committed is answered with."""
    prefix = event_name(tenant_id, "")
    response = PublishEventsResponse()
    for result in results:
        response.results.add(
            name=prefix + format_type_id(EVENT_ID, result.event_id),
            deduplicated=result.deduplicated,
            delivery_count=result.delivery_count,
        )
    return response
