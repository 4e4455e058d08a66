"""A readable tree of a trace, from spans of this process and of a node's console exporter.

Used by the demo, which has no collector: `OwnSpans` keeps the spans of this process (the client
uses the provider of the process), `span_of_line` parses the lines of a node with
`OTEL_TRACES_EXPORTER=console`, `tree_of` formats both as one tree with durations.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hookline_service.telemetry import names

_WIDTH = 58
_STEP = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSpan:
    """The parts of a span that the tree shows."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    name: str
    service: str
    start_s: float
    duration_ms: float
    has_failed: bool
    attributes: Mapping[str, Any]
    links: tuple[str, ...]
    """The ids of linked traces."""


class OwnSpans:
    """The spans of this process, kept in memory by its global provider."""

    def __init__(self, service: str) -> None:
        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: service}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        trace.set_tracer_provider(self._provider)

    @contextmanager
    def spanning(self, name: str) -> Iterator[str]:
        """Open a span around the block; yield its trace id."""
        with self._provider.get_tracer(names.SCOPE).start_as_current_span(name) as span:
            yield f"{span.get_span_context().trace_id:032x}"

    def ended(self) -> list[ShownSpan]:
        """Return all finished spans."""
        lines = [span.to_json(indent=None) for span in self._exporter.get_finished_spans()]
        return [span for line in lines if (span := span_of_line(line)) is not None]


def span_of_line(line: str) -> ShownSpan | None:
    """Parse a line of the console exporter; return None for other lines."""
    try:
        fields: dict[str, Any] = json.loads(line)
        context, start_s = fields["context"], _unix_s(fields["start_time"])
        return ShownSpan(
            trace_id=_id(context["trace_id"]),
            span_id=_id(context["span_id"]),
            parent_id=_id(fields["parent_id"] or ""),
            name=fields["name"],
            service=fields["resource"]["attributes"][SERVICE_NAME],
            start_s=start_s,
            duration_ms=(_unix_s(fields["end_time"]) - start_s) * 1_000,
            has_failed=fields["status"]["status_code"] == "ERROR",
            attributes=fields["attributes"],
            links=tuple(_id(link["context"]["trace_id"]) for link in fields["links"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def tree_of(spans: Collection[ShownSpan], trace_id: str, event: str) -> list[str]:
    """Return the lines of a trace, restricted to one event, and of the traces linked to it."""
    children: defaultdict[str, list[ShownSpan]] = defaultdict(list)
    span_ids = {span.span_id for span in spans}
    for span in sorted(spans, key=lambda span: span.start_s):
        children[span.parent_id if span.parent_id in span_ids else ""].append(span)
    roots = [span for span in children[""] if span.trace_id == trace_id]
    retries = [span for span in children[""] if trace_id in span.links and _is_of(span, event)]
    lines = [line for root in roots for line in _branch(root, children, event, 0)]
    if retries:
        lines.append("linked to it, a trace for each retry:")
        lines += [line for root in retries for line in _branch(root, children, event, 0)]
    return lines


def _branch(
    span: ShownSpan, children: Mapping[str, Sequence[ShownSpan]], event: str, depth: int
) -> Iterator[str]:
    if not _is_of(span, event):
        return
    text = f"{_STEP * depth}{span.name}{_detail_of(span)}"
    failed = "  failed" if span.has_failed else ""
    yield f"{text:<{_WIDTH}} {span.duration_ms:8.1f} ms  {span.service}{failed}"
    for child in children.get(span.span_id, ()):
        yield from _branch(child, children, event, depth + 1)


def _is_of(span: ShownSpan, event: str) -> bool:
    """Return whether a span belongs to the event, or to its whole batch."""
    return str(span.attributes.get(names.MESSAGING_MESSAGE, event)) == event


def _detail_of(span: ShownSpan) -> str:
    attributes = span.attributes
    if names.ATTEMPT in attributes:
        receiver = str(attributes[names.MESSAGING_SUBSCRIPTION]).rpartition("/")[2]
        return f" to {receiver}, attempt {attributes[names.ATTEMPT]}"
    status = attributes.get(names.HTTP_STATUS)
    return "" if status is None else f" -> {status}"


def _id(text: str) -> str:
    return text.removeprefix("0x")


def _unix_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
