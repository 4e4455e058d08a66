"""Logs of a process: one line per event, one path for all lines, no secrets."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

from hookline_service.telemetry.logs import ALLOWED
from hookline_service.telemetry.repetition import KEYS_MAX, LINES_A_WINDOW, WINDOW_S, Repetition
from tests.architecture.repository import python_files, tree
from tests.telemetry.spans import CALLER_TRACE, SAMPLED

SCRIPT = """
import logging, structlog
from hookline_service.telemetry import LogFormat, LogLevel, configure_logging
configure_logging(LogFormat.{log_format}, LogLevel.{level})
log = structlog.get_logger("hookline_service.pipeline.membership.ownership")
log.debug("detail")
log.info("buckets_taken", count=3, address=print)
logging.getLogger("asyncpg").warning("from a %s", "library")
def fails(secret):
    raise ValueError("broken")
try:
    fails("whsec_hidden")
except ValueError:
    log.exception("record_broken")
"""


def logged(log_format: str, level: str = "INFO", script: str = SCRIPT) -> list[str]:
    """Return the lines on standard error of a script; check that standard output is empty."""
    code = script.format(log_format=log_format, level=level)
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout == ""
    return ran.stderr.splitlines()


def test_json_format_is_one_object_per_line() -> None:
    taken, library, broken = map(json.loads, logged("JSON"))
    assert taken["event"] == "buckets_taken"
    assert taken["level"] == "info"
    assert taken["logger"] == "hookline_service.pipeline.membership.ownership"
    assert taken["count"] == 3
    assert taken["time"].endswith("Z")
    assert library["event"] == "from a library"
    assert library["logger"] == "asyncpg"
    assert broken["event"] == "record_broken"
    assert (
        'raise ValueError("broken")' in broken["exception"]
        or "ValueError: broken" in (broken["exception"])
    )


def test_console_format_has_no_colour_without_a_terminal() -> None:
    lines = logged("CONSOLE")
    assert "buckets_taken" in lines[0]
    assert "count=3" in lines[0]
    assert any("ValueError: broken" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("log_format", ["JSON", "CONSOLE"])
def test_local_variables_are_never_logged(log_format: str) -> None:
    text = "\n".join(logged(log_format)).replace('\\"', '"')
    assert "whsec_hidden" not in text.replace('fails("whsec_hidden")', "")  # source line


@pytest.mark.parametrize("level, count", [("DEBUG", 4), ("INFO", 3), ("WARNING", 2), ("ERROR", 1)])
def test_lines_below_the_level_are_not_logged(level: str, count: int) -> None:
    assert len(logged("JSON", level)) == count


TROUBLES = """
import structlog
from hookline_service.telemetry import LogFormat, LogLevel, configure_logging
configure_logging(LogFormat.{log_format}, LogLevel.INFO)
log = structlog.get_logger("hookline_service.pipeline.dispatch.lane_configs")
for number in range(10):
    log.error("signing_secret_sealed", subscription="one", error=str(number))
log.error("signing_secret_sealed", subscription="two")
for number in range(10):
    log.warning("internal_error", reason="no descriptor", subscription=str(number))
log.warning("internal_error", reason="no resolver", subscription="0")
log.warning("odd", payload="a customer's", url="https://a.b/token", error="key hk_abcdefgh12345678")
log.warning("lost", error="postgresql://hookline:password@db/hookline", reason="whsec_MfKQ9r8G")
"""


@pytest.mark.parametrize("log_format", ["JSON", "CONSOLE"])
def test_text_that_looks_like_a_secret_is_removed(log_format: str) -> None:
    text = "\n".join(logged(log_format, script=TROUBLES))
    for secret in ("customer", "token", "abcdefgh12345678", "password", "MfKQ9r8"):
        assert secret not in text
    assert text.count("[hidden]") == 2
    assert "://…@db/hookline" in text


def test_repeated_line_is_logged_three_times_a_minute_per_subject() -> None:
    lines = [json.loads(line) for line in logged("JSON", script=TROUBLES)]
    sealed = [line["subscription"] for line in lines if line["event"] == "signing_secret_sealed"]
    assert sealed == ["one", "one", "one", "two"]


def test_lines_with_the_same_reason_share_one_limit() -> None:
    lines = [json.loads(line) for line in logged("JSON", script=TROUBLES)]
    faults = [line["reason"] for line in lines if line["event"] == "internal_error"]
    assert faults == ["no descriptor"] * 3 + ["no resolver"]


def test_next_line_counts_those_left_out() -> None:
    now_s = 0.0
    repetition = Repetition(lambda: now_s)
    assert [repetition.admit("a") for _ in range(5)] == [0, 0, 0, None, None]
    assert repetition.admit("b") == 0
    now_s = WINDOW_S
    assert [repetition.admit("a") for _ in range(4)] == [2, 0, 0, None]


def test_number_of_remembered_lines_is_bounded() -> None:
    repetition = Repetition(lambda: 0.0)
    for number in range(KEYS_MAX + 10):
        repetition.admit(number)
    for _ in range(LINES_A_WINDOW):
        assert repetition.admit(0) == 0, "it was forgotten"


MARKED = """
import logging, threading, structlog
from hookline_service.telemetry import LogFormat, LogLevel, configure_logging, mark_lines
configure_logging(LogFormat.{log_format}, LogLevel.INFO)
mark_lines(worker=2)
log = structlog.get_logger("hookline_service.telemetry.outbox")
for said in (log.info, logging.getLogger("grpc").warning):
    said("here")
    thread = threading.Thread(target=said, args=("elsewhere",))
    thread.start()
    thread.join()
"""


def test_every_line_has_the_fields_of_its_process() -> None:
    lines = [json.loads(line) for line in logged("JSON", script=MARKED)]
    assert [line["worker"] for line in lines] == [2, 2, 2, 2]


TRACED = """
import logging, structlog
from opentelemetry.sdk.trace import TracerProvider
from hookline_service.telemetry import LogFormat, LogLevel, configure_logging
from hookline_service.telemetry.tracing import Tracer
configure_logging(LogFormat.{log_format}, LogLevel.INFO)
log = structlog.get_logger("hookline_service.api")
tracer = Tracer(TracerProvider(shutdown_on_exit=False))
tracer.call_began("hookline.v1.EventService/GetEvent", "%s")
log.info("ours")
logging.getLogger("grpc").warning("theirs")
log.info("ours", trace_id="its own")
tracer.call_ended("OK")
log.info("ours", trace_id=None)
"""


def test_line_of_a_traced_call_has_its_trace_id() -> None:
    lines = [json.loads(line) for line in logged("JSON", script=TRACED % SAMPLED)]
    trace = f"{CALLER_TRACE:032x}"
    assert [line.get("trace_id") for line in lines] == [trace, trace, "its own", None]
    assert ["span_id" in line for line in lines] == [True, True, False, False]


def fields_of(path: pathlib.PurePosixPath) -> set[str]:
    """Return the names of all fields that a file logs."""
    return {
        str(keyword.arg)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        for keyword in node.keywords
        if node.func.attr == "bind_contextvars"
        or (isinstance(node.func.value, ast.Name) and node.func.value.id == "_log")
    }


def test_every_logged_field_is_allowed() -> None:
    ours = [path for path in python_files() if path.parts[0] == "service"]
    assert set().union(*map(fields_of, ours)) - ALLOWED == set()
