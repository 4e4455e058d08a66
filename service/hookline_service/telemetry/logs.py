"""Logs: one event per line, with its details as fields.

Events are past-tense facts in snake case, such as `buckets_taken`; details are fields, so that
lines can be counted and searched. Logs go to standard error, because standard output is for the
results of commands. Lines that libraries log through the standard library take the same path.
`ALLOWED` lists the fields that are shown, `repetition.py` limits repeated lines. Depends on no
other package.

Fields are shown by an allowlist, not hidden by a denylist: a field that is not on it appears as
`HIDDEN`. A test checks that every log call of the service uses allowed fields only.
"""

from __future__ import annotations

import logging
import re
import sys
from enum import StrEnum
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict, Processor

from hookline_service.telemetry.context import current_ids
from hookline_service.telemetry.repetition import Repetition

HIDDEN: Final = "[hidden]"

ALLOWED: Final = frozenset(
    {
        # on every line
        "event", "level", "logger", "time", "trace_id", "span_id", "repeated", "worker",
        # of the embedded Postgres, and of connections that were ended
        "cluster", "connections", "pid",
        # structlog's own, removed by the renderer
        "exc_info", "stack_info", "exception", "stack", "_record", "_from_structlog",
        "positional_args",
        # the subject
        "attempt", "calls", "chore", "count", "days", "deliveries", "delivery", "event_id",
        "event_type", "failures", "hash", "http_status", "key_id", "node_id", "others", "outcome",
        "owned", "sequence", "subscription", "tenant", "workers",
        # cause and consequence
        "address", "ahead_s", "cause", "end", "error", "exceeded", "exit_code", "expires_at",
        "failed_for_s", "found", "had", "is_known", "is_trusted", "limit", "name", "needed",
        "next_probe_in_s", "part", "port", "reason", "served_s", "session", "setting",
        "silent_s", "sqlstate", "starts_again_in_s", "summary", "system_identifier", "timeline",
    }
)  # fmt: skip

_SECRET = re.compile(
    r"(?P<kind>whsec_|whsk_|hk_|Bearer )[A-Za-z0-9+/=_.-]{8,}"
    r"|(?<=://)[^/@\s\"']+(?=@)"  # user and password in a URL
)


class LogFormat(StrEnum):
    """The format of a line."""

    JSON = "json"
    """For collectors: one object per line."""
    CONSOLE = "console"
    """For reading; in colour if standard error is a terminal."""


class LogLevel(StrEnum):
    """The lowest level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_OF_PROCESS: Final[dict[str, object]] = {}


def mark_lines(**fields: object) -> None:
    """Add these fields to every line of this process, from any thread."""
    _OF_PROCESS.update(fields)


def configure_logging(log_format: LogFormat, level: LogLevel) -> None:
    """Set up the logs of the process. Call it once, before anything is logged."""
    repetition = Repetition()
    shared: list[Processor] = [
        _add_process,
        structlog.contextvars.merge_contextvars,
        _add_trace,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            repetition.limit,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _hide_unknown,
                *_renderers(log_format),
                _remove_secrets,
            ],
        )
    )
    handler.addFilter(repetition.filter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _renderers(log_format: LogFormat) -> list[Processor]:
    if log_format is LogFormat.CONSOLE:
        return [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                timestamp_key="time",
                # The default shows local variables, which may contain secrets.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    return [structlog.processors.format_exc_info, _json_line]


def _add_process(_logger: object, _method: str, event: EventDict) -> EventDict:
    return {**_OF_PROCESS, **event}


def _add_trace(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Add the ids of the current call, unless the line has its own `trace_id`."""
    if event.get("trace_id") is None:
        event.pop("trace_id", None)
        if (ids := current_ids()) is not None:
            event["trace_id"], event["span_id"] = ids
    return event


def _hide_unknown(_logger: object, _method: str, event: EventDict) -> EventDict:
    for name in event.keys() - ALLOWED:
        event[name] = HIDDEN
    return event


def _remove_secrets(_logger: object, _method: str, line: Any) -> str:  # noqa: ANN401
    """Remove what looks like a secret. Runs after the renderer, so that tracebacks are covered."""
    return _SECRET.sub(lambda found: (found["kind"] or "") + "…", line)


def _json_line(_logger: object, _method: str, event: EventDict) -> str:
    """Return one line of JSON; values without a JSON type are written as text."""
    return orjson.dumps(event, default=str).decode()
