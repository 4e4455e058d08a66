"""Logs: one event a line, with its particulars as fields.

Events are named like `buckets_taken`, their particulars are fields, so that a program can count and
a person can search. Logs go to standard error: standard output belongs to what a command answers.
Everything of the process goes one way, also what libraries say through the standard library. What
may stand in a line is `fields.py`'s, how often the same line comes `repetition.py`'s. Must not know
any other room.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict, Processor

from hookline_service.telemetry.current import current_ids
from hookline_service.telemetry.fields import hide_unknown, without_secrets
from hookline_service.telemetry.repetition import Repetition


class LogFormat(StrEnum):
    """What a line looks like."""

    JSON = "json"
    """For collectors: one object a line."""
    CONSOLE = "console"
    """For people; in colour where standard error is a terminal."""


class LogLevel(StrEnum):
    """The least that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_OF_PROCESS: Final[dict[str, object]] = {}


def mark_lines(**fields: object) -> None:
    """Let every line of this process have these fields, whichever thread it comes from."""
    _OF_PROCESS.update(fields)


def configure_logging(log_format: LogFormat, level: LogLevel) -> None:
    """Set up the process's logs; call once, before anything is logged."""
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
                hide_unknown,
                *_renderers(log_format),
                _without_secrets,
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
                # The default shows local variables, and a secret may be one.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    return [structlog.processors.format_exc_info, _json_line]


def _add_process(_logger: object, _method: str, event: EventDict) -> EventDict:
    return {**_OF_PROCESS, **event}


def _add_trace(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Which call's trace a line belongs to, unless it says so itself."""
    if event.get("trace_id") is None:
        event.pop("trace_id", None)
        if (ids := current_ids()) is not None:
            event["trace_id"], event["span_id"] = ids
    return event


def _without_secrets(_logger: object, _method: str, line: Any) -> str:  # noqa: ANN401
    """After the renderer, so that a traceback is looked at too; what it made is a line."""
    return without_secrets(line)


def _json_line(_logger: object, _method: str, event: EventDict) -> str:
    """One line of JSON; a field that JSON does not know is shown as its text."""
    return orjson.dumps(event, default=str).decode()
