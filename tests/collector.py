"""An OpenTelemetry collector: an OTLP endpoint over gRPC that keeps received data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Received:
    """One span, and the service that sent it."""

    span: Span
    service: str
    instance: str

    @property
    def attributes(self) -> dict[str, object]:
        """Return the attributes of the span."""
        return values_of(self.span.attributes)


def values_of(pairs: Any) -> dict[str, object]:  # noqa: ANN401 - a repeated field
    """Return attributes as Python values."""
    return {pair.key: _value_of(pair) for pair in pairs}


def _value_of(pair: KeyValue) -> object:
    kind = pair.value.WhichOneof("value")
    return None if kind is None else getattr(pair.value, kind)


@dataclass
class Collector(
    trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer
):
    """`async with Collector() as collector:` listens on a loopback port."""

    refuses: bool = False
    spans: list[Received] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    metadata: list[tuple[str, str | bytes]] = field(default_factory=list)
    exports: int = 0
    port: int = 0

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables that make a service export to it without delay."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }

    async def Export(self, request: Any, context: _Context) -> Any:  # noqa: ANN401 - two services
        """Handle an export; both services use this method name."""
        self.exports += 1
        self.metadata += context.invocation_metadata() or ()
        if self.refuses:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not today")
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            for group in request.resource_spans:
                resource = values_of(group.resource.attributes)
                service, instance = (
                    str(resource["service.name"]),
                    str(resource.get("service.instance.id")),
                )
                for scope in group.scope_spans:
                    self.spans += [Received(span, service, instance) for span in scope.spans]
            return trace_service_pb2.ExportTraceServiceResponse()
        for group in request.resource_metrics:
            for scope in group.scope_metrics:
                self.metrics |= {metric.name: metric for metric in scope.metrics}
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def named(self, name: str, trace_id: bytes | None = None) -> list[Received]:
        """Return the spans with a name, of one trace or of all."""
        return [
            one
            for one in self.spans
            if one.span.name == name and trace_id in (None, one.span.trace_id)
        ]
