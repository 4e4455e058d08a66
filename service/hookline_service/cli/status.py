"""`hookline status`: the nodes, the backlog, the lanes with most deliveries queued."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from hookline import HooklineClient
from hookline.v1.operations_service_pb2 import (
    LANE_STATE_READY,
    GetStatusRequest,
    GetStatusResponse,
    Lane,
    LaneState,
    Node,
    Source,
)
from hookline_service.cli.server import ask
from hookline_service.cli.wording import plain, time_of, until

DEAD_LETTERS_COUNTED = 10_000
"""The server counts no further; the contract says so."""


def run(asked: argparse.Namespace) -> int:
    """Read the status once, and print it."""

    async def questions(client: HooklineClient) -> int:
        status = await client.operations.GetStatus(GetStatusRequest())
        print("\n".join(_lines(status, asked.server)))
        return 0

    return ask(asked, questions)


def _lines(status: GetStatusResponse, server: str) -> Iterator[str]:
    yield f"Hookline {status.version} at {server}"
    yield f"pending  {_pending(status)}"
    yield f"dead     {_dead_letters(status.dead_letter_count)}"
    yield f"nodes    {len(status.nodes)}"
    for node in status.nodes:
        yield f"  {_node(node, status.node_id)}"
    lanes = status.lanes
    yield (
        f"lanes    {lanes.total_count} on this node: {lanes.open_count} with an open circuit,"
        f" {lanes.limited_count} limited, {lanes.held_count} held"
    )
    for lane in status.top_lanes:
        yield f"  {_lane(lane)}"
    for source in status.sources:
        yield f"follows  {_source(source)}"
        if source.problem:
            yield f"  but the current content is not in use: {plain(source.problem)}"


def _pending(status: GetStatusResponse) -> str:
    if not status.pending_count:
        return "0"
    oldest = until(status.oldest_pending_time)
    return f"{status.pending_count}, the oldest created {oldest}"


def _dead_letters(count: int) -> str:
    return f"{count} or more" if count >= DEAD_LETTERS_COUNTED else str(count)


def _node(node: Node, asked_node_id: str) -> str:
    parts = [node.node_id, node.hostname, node.address, node.version]
    parts.append(f"{node.bucket_count} of 256 buckets")
    parts.append(f"lease ends {until(node.lease_expire_time)}")
    if node.node_id == asked_node_id:
        parts.append("(this one)")
    return "  ".join(part for part in parts if part)


def _source(source: Source) -> str:
    parts = [source.setting, plain(source.summary)]
    if source.HasField("expire_time"):
        parts.append(f"expires {until(source.expire_time)}")
    return "  ".join(parts)


def _lane(lane: Lane) -> str:
    parts = [lane.subscription, f"{lane.queued_count} queued", f"{lane.in_flight_count} in flight"]
    if lane.state != LANE_STATE_READY:
        parts.insert(1, LaneState.Name(lane.state).removeprefix("LANE_STATE_"))
    if lane.consecutive_failure_count:
        parts.append(f"{lane.consecutive_failure_count} failures in a row")
    if lane.HasField("oldest_due_time"):
        parts.append(f"oldest due {time_of(lane.oldest_due_time)}")
    return "  ".join(parts)
