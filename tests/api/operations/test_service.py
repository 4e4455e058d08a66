"""OperationsService over a real channel: the status of nodes, backlog and lanes."""

from __future__ import annotations

from uuid import UUID

import pytest

from hookline.v1.operations_service_pb2 import LANE_STATE_HELD, GetStatusRequest
from hookline_service.store.status import StatusStore
from tests.api.conftest import SOURCE, VERSION, Api
from tests.api.publishing import order, publish
from tests.waiting import until


async def hold(api: Api, subscription_id: str) -> None:
    """Create a paused subscription of acme."""
    tenant_uid: UUID = await api.rows.connection.fetchval(
        "SELECT tenant_uid FROM tenants WHERE tenant_id = 'acme'"
    )
    await api.rig.subscription(
        tenant_uid,
        "http://127.0.0.1:1024/",
        subscription_id=subscription_id,
        state="PAUSED",
        state_reason="OPERATOR",
    )


async def test_idle_node_reports_its_identity(api: Api) -> None:
    api.rig.ownership.serve_at("10.1.2.3:50051")

    async def address_is_known() -> bool:
        status = await api.operations.GetStatus(GetStatusRequest())
        return [node.address for node in status.nodes] == ["10.1.2.3:50051"]

    await until(address_is_known, "the next heartbeat stores its address")
    answer = await api.operations.GetStatus(GetStatusRequest())
    assert answer.version == VERSION
    [node] = answer.nodes
    assert node.node_id == answer.node_id == str(api.rig.ownership.node_id)
    assert (node.version, node.bucket_count) == ("0.0.0", 256)
    assert node.hostname
    [source] = answer.sources
    assert (source.setting, source.summary) == (SOURCE.setting, SOURCE.summary)
    assert (source.problem, source.HasField("expire_time")) == ("", True)
    assert node.lease_expire_time.ToMilliseconds() > node.start_time.ToMilliseconds()
    assert answer.HasField("pending_count")
    assert answer.pending_count == 0
    assert not answer.HasField("oldest_pending_time")
    assert (answer.lanes.total_count, list(answer.top_lanes)) == (0, [])


async def test_pending_deliveries_are_counted_with_the_oldest_due_time(api: Api) -> None:
    for number in range(3):
        await hold(api, f"held-{number}")
    first = (await publish(api, order())).results[0]
    assert first.delivery_count == 3
    await publish(api, order())
    answer = await api.operations.GetStatus(GetStatusRequest())
    assert answer.pending_count == 6
    oldest = await api.rows.connection.fetchval(
        "SELECT delivery_id FROM pending_deliveries ORDER BY delivery_id LIMIT 1"
    )
    assert answer.oldest_pending_time.ToMilliseconds() == oldest.int >> 80

    async def lanes_are_known() -> bool:
        lanes = (await api.operations.GetStatus(GetStatusRequest())).lanes
        return (lanes.total_count, lanes.held_count) == (3, 3)

    await until(lanes_are_known, "the sweep finds the lanes")
    answer = await api.operations.GetStatus(GetStatusRequest())
    assert {lane.state for lane in answer.top_lanes} == {LANE_STATE_HELD}
    assert {lane.subscription for lane in answer.top_lanes} == {
        f"tenants/acme/subscriptions/held-{number}" for number in range(3)
    }


async def test_only_dead_letters_are_counted_as_dead_letters(api: Api) -> None:
    tenant_uid = await api.rows.tenant("globex")
    place = await api.rows.subscription(tenant_uid, "orders")
    for state in ("SUCCEEDED", "CANCELLED", "EXPIRED", "EXHAUSTED", "EXHAUSTED"):
        await api.rows.finished(place, await api.rows.event(tenant_uid), state=state)
    answer = await api.operations.GetStatus(GetStatusRequest())
    assert answer.dead_letter_count == 2


async def test_estimate_is_never_below_the_counting_limit(api: Api) -> None:
    await hold(api, "held")
    await publish(api, *[order()] * 500)
    store = StatusStore(api.rig.database, counted_max=10)
    assert (await store.backlog()).count >= 10
    await api.rows.connection.execute("ANALYZE pending_deliveries")
    assert (await store.backlog()).count == pytest.approx(500, rel=0.1)
