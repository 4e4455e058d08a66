"""A call's span over a real channel: it ends with the status of the call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan

from hookline.v1.tenant_service_pb2 import GetTenantRequest, ListTenantsRequest
from hookline.v1.tenant_service_pb2_grpc import TenantServiceStub
from hookline_service.api.middleware.call_observer import TelemetryObserver
from hookline_service.telemetry.instruments import Instruments
from hookline_service.telemetry.meters import Meters
from tests.api.conftest import Api, serving
from tests.api.middleware.test_interceptors import Troubled
from tests.api.refusals import refusal
from tests.telemetry.spans import CALLER_SPAN, CALLER_TRACE, SAMPLED, UNSAMPLED, Spans, is_error
from tests.waiting import until

GET = "hookline.v1.TenantService/GetTenant"
WITH_TRACE = (("traceparent", SAMPLED), ("baggage", "user=secret"), ("tracestate", "a=secret"))


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def meters() -> Meters:
    return Meters()


@pytest.fixture
def troubled() -> Troubled:
    return Troubled()


@pytest.fixture
async def api(
    database_url: str, troubled: Troubled, spans: Spans, meters: Meters
) -> AsyncIterator[Api]:
    observer = TelemetryObserver(Instruments(spans.tracer, meters))
    async with serving(database_url, tenants=troubled, observer=observer) as api:
        yield api


def stub(api: Api) -> TenantServiceStub:
    return TenantServiceStub(api.channel)


async def ended(spans: Spans) -> ReadableSpan:
    """The only span, once it is over."""
    await until(lambda: len(spans.ended()) == 1, "the call's span ends")
    return spans.ended()[0]


def code_of(span: ReadableSpan) -> object:
    return (span.attributes or {})["rpc.response.status_code"]


@pytest.mark.parametrize(
    "name, code, failed",
    [
        ("fine", "OK", False),
        ("not found", "NOT_FOUND", False),
        ("contention", "ABORTED", False),
        ("lost", "UNAVAILABLE", True),
        ("bug", "INTERNAL", True),
        ("base exception", "INTERNAL", True),
        ("cancelled below", "UNAVAILABLE", True),
        ("its own abort", "DATA_LOSS", True),
    ],
)
async def test_a_span_ends_with_the_status_of_its_call(
    api: Api, spans: Spans, meters: Meters, name: str, code: str, *, failed: bool
) -> None:
    call = stub(api).GetTenant(GetTenantRequest(name=name), metadata=WITH_TRACE)
    if name == "fine":
        await call
    else:
        await refusal(call)
    span = await ended(spans)
    assert span.name == GET
    assert code_of(span) == code
    assert is_error(span) is failed
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == (CALLER_TRACE, CALLER_SPAN)
    shown = span.to_json()
    assert "hunter2" not in shown
    assert "secret" not in shown
    (labels,) = meters.call_duration.snapshot()
    assert ("rpc.response.status_code", code) in labels


async def test_a_deadline_that_passed_is_an_error_of_its_span(api: Api, spans: Spans) -> None:
    await refusal(stub(api).ListTenants(ListTenantsRequest(), timeout=0.2))
    span = await ended(spans)
    assert code_of(span) == "DEADLINE_EXCEEDED"
    assert is_error(span)


async def test_a_disconnected_client_is_no_error_of_the_span(
    api: Api, spans: Spans, troubled: Troubled
) -> None:
    call = stub(api).ListTenants(ListTenantsRequest(), timeout=60)
    await until(lambda: troubled.waiting == 1, "the call waits")
    call.cancel()
    span = await ended(spans)
    assert code_of(span) == "CANCELLED"
    assert not is_error(span)


async def test_neither_an_unsampled_call_nor_a_probe_makes_a_span(
    api: Api, spans: Spans, meters: Meters
) -> None:
    await stub(api).GetTenant(GetTenantRequest(), metadata=(("traceparent", UNSAMPLED),))
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await until(lambda: len(meters.call_duration.snapshot()) == 2, "both are measured")
    assert spans.ended() == []


async def test_calls_of_unknown_methods_are_measured_under_one_name(
    api: Api, meters: Meters
) -> None:
    for name in ("One", "Two"):
        method = f"/hookline.v1.TenantService/{name}"
        make: Any = api.channel.unary_unary(method)
        answer = await refusal(make(b""))
        assert answer.code is grpc.StatusCode.UNIMPLEMENTED
    (labels,) = meters.call_duration.snapshot()
    assert ("rpc.method", "_OTHER") in labels
