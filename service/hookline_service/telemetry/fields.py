"""What may stand in a line of the log: fields by name, and nothing that looks like a secret.

A list of what is allowed, not of what is forbidden: a field that nobody thought of is hidden, not
shown. A test holds every call in this service to it, so that none is hidden by accident.
"""

from __future__ import annotations

import re
from typing import Final

from structlog.typing import EventDict

HIDDEN: Final = "[hidden]"

ALLOWED: Final = frozenset(
    {
        # what every line has
        "event", "level", "logger", "time", "trace_id", "span_id", "repeated", "worker",
        # structlog's own, on their way to the renderer
        "exc_info", "stack_info", "exception", "stack", "_record", "_from_structlog",
        "positional_args",
        # whom and what it is about
        "attempt", "calls", "chore", "count", "days", "deliveries", "delivery", "event_id",
        "event_type", "failures", "hash", "http_status", "key_id", "node_id", "others", "outcome",
        "owned", "sequence", "subscription", "tenant", "workers",
        # why and what now
        "address", "ahead_s", "cause", "end", "error", "exceeded", "exit_code", "expires_at",
        "failed_for_s", "found", "had", "is_known", "is_trusted", "limit", "name", "needed",
        "next_probe_in_s", "part", "port", "reason", "served_s", "session", "setting",
        "silent_s", "sqlstate", "starts_again_in_s", "summary", "system_identifier", "timeline",
    }
)  # fmt: skip

_SECRET = re.compile(
    r"(?P<kind>whsec_|whsk_|hk_|Bearer )[A-Za-z0-9+/=_.-]{8,}"
    r"|(?<=://)[^/@\s\"']+(?=@)"  # user and password of a URL
)


def hide_unknown(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Show no field that is not allowed."""
    for name in event.keys() - ALLOWED:
        event[name] = HIDDEN
    return event


def without_secrets(line: str) -> str:
    """A line in which nothing looks like a secret any more."""
    return _SECRET.sub(lambda found: (found["kind"] or "") + "…", line)
