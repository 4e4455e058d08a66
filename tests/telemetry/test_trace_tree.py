"""The tree of a trace: the spans of one event, and its linked retries."""

import json

from hookline_service.telemetry.trace_tree import ShownSpan, span_of_line, tree_of

TRACE, RETRY = "1" * 32, "2" * 32


def span(name: str, number: int, parent: int = 0, **changes: object) -> ShownSpan:
    values: dict[str, object] = {
        "trace_id": TRACE,
        "span_id": f"{number:016x}",
        "parent_id": f"{parent:016x}" if parent else "",
        "name": name,
        "service": "hookline",
        "start_s": float(number),
        "duration_ms": 1.5,
        "has_failed": False,
        "attributes": {},
        "links": (),
    }
    return ShownSpan(**(values | changes))  # type: ignore[arg-type]  # fields of the test


def attempt(number: int, event: str) -> dict[str, object]:
    return {
        "messaging.message.id": event,
        "messaging.destination.subscription.name": "tenants/acme/subscriptions/crm",
        "hookline.attempt.number": number,
    }


def test_tree_shows_one_event_and_its_linked_retries() -> None:
    spans = [
        span("deliver", 4, 2, attributes=attempt(1, "evt_other")),
        span("deliver", 3, 2, attributes=attempt(1, "evt_mine"), has_failed=True),
        span("publish", 2, 1),
        span("call", 1),
        span("deliver", 6, trace_id=RETRY, attributes=attempt(2, "evt_mine"), links=(TRACE,)),
        span("deliver", 7, trace_id="3" * 32, attributes=attempt(2, "evt_other"), links=(TRACE,)),
        span("POST", 8, 6, trace_id=RETRY, attributes={"http.response.status_code": 200}),
    ]
    lines = [" ".join(line.split()) for line in tree_of(spans, TRACE, "evt_mine")]
    assert lines == [
        "call 1.5 ms hookline",
        "publish 1.5 ms hookline",
        "deliver to crm, attempt 1 1.5 ms hookline failed",
        "linked to it, a trace for each retry:",
        "deliver to crm, attempt 2 1.5 ms hookline",
        "POST -> 200 1.5 ms hookline",
    ]


def test_other_lines_are_ignored() -> None:
    for line in ("ready", "{}", json.dumps({"name": "x"}), "[1]", json.dumps({"event": "y"})):
        assert span_of_line(line) is None
