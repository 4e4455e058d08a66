"""OperationsService: reports the state of the service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext

from hookline.v1 import operations_service_pb2, operations_service_pb2_grpc
from hookline_service.api.conversion.values import timestamp_of, timestamp_of_ms
from hookline_service.identity.files import SourceState
from hookline_service.pipeline.dispatch.lanes import Lanes, LaneView
from hookline_service.store.status import Node, StatusStore

_Context = ServicerContext[Any, Any]

TOP_LANES_MAX = 20


class OperationsServicer(operations_service_pb2_grpc.OperationsServiceServicer):
    """Implements OperationsService."""

    def __init__(
        self,
        *,
        status: StatusStore,
        lanes: Lanes,
        version: str,
        node_id: Callable[[], UUID],
        sources: Callable[[], Sequence[SourceState]],
    ) -> None:
        """`node_id` is called each time: an expired node registers again with another id."""
        self._status = status
        self._lanes = lanes
        self._version = version
        self._node_id = node_id
        self._sources = sources

    async def GetStatus(
        self, request: operations_service_pb2.GetStatusRequest, context: _Context
    ) -> operations_service_pb2.GetStatusResponse:
        """Return the nodes, the backlog and the lanes with the largest backlog."""
        del request, context
        nodes, backlog = await self._status.nodes(), await self._status.backlog()
        top = self._lanes.top(TOP_LANES_MAX)
        due = await self._status.oldest_due([(lane.bucket, lane.subscription_uid) for lane in top])
        counts, oldest_ms = self._lanes.counts(), backlog.oldest_unix_ms
        return operations_service_pb2.GetStatusResponse(
            version=self._version,
            node_id=str(self._node_id()),
            nodes=[_node_message(node) for node in nodes],
            pending_count=backlog.count,
            dead_letter_count=await self._status.dead_letters(),
            oldest_pending_time=None if oldest_ms is None else timestamp_of_ms(oldest_ms),
            lanes=operations_service_pb2.LaneCounts(
                total_count=counts.total,
                open_count=counts.open,
                limited_count=counts.limited,
                held_count=counts.held,
            ),
            top_lanes=[_lane_message(lane, due.get(lane.subscription_uid)) for lane in top],
            sources=[_source_message(source) for source in self._sources()],
        )


def _source_message(source: SourceState) -> operations_service_pb2.Source:
    loaded_at, expires_at = source.loaded_at, source.expires_at
    return operations_service_pb2.Source(
        setting=source.setting,
        summary=source.summary,
        load_time=None if loaded_at is None else timestamp_of(loaded_at),
        expire_time=None if expires_at is None else timestamp_of(expires_at),
        problem=source.problem,
    )


def _node_message(node: Node) -> operations_service_pb2.Node:
    return operations_service_pb2.Node(
        node_id=str(node.node_id),
        hostname=node.hostname,
        address=node.address,
        version=node.version,
        start_time=timestamp_of(node.start_time),
        lease_expire_time=timestamp_of(node.lease_until),
        bucket_count=node.bucket_count,
    )


def _lane_message(lane: LaneView, due: datetime | None) -> operations_service_pb2.Lane:
    return operations_service_pb2.Lane(
        subscription=lane.subscription,
        state=operations_service_pb2.LaneState.Value(f"LANE_STATE_{lane.state}"),
        queued_count=lane.queued,
        in_flight_count=lane.in_flight,
        oldest_due_time=timestamp_of(due) if due else None,
        consecutive_failure_count=lane.consecutive_failures,
    )
