"""Logs as a process writes them: one line an event, everything one way, no secret by accident."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import logging, structlog
from service.telemetry import LogFormat, LogLevel, configure_logging
configure_logging(LogFormat.{log_format}, LogLevel.{level})
log = structlog.get_logger("service.pipeline.ownership")
log.debug("detail")
log.info("buckets_taken", count=3, node=print)
logging.getLogger("asyncpg").warning("from a %s", "library")
def fails(secret):
    raise ValueError("broken")
try:
    fails("whsec_hidden")
except ValueError:
    log.exception("record_broken")
"""


def logged(log_format: str, level: str = "INFO") -> list[str]:
    """What the script writes to standard error; it writes nothing to standard output."""
    code = SCRIPT.format(log_format=log_format, level=level)
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout == ""
    return ran.stderr.splitlines()


def test_json_is_one_object_a_line() -> None:
    taken, library, broken = map(json.loads, logged("JSON"))
    assert taken["event"] == "buckets_taken"
    assert taken["level"] == "info"
    assert taken["logger"] == "service.pipeline.ownership"
    assert taken["count"] == 3
    assert taken["time"].endswith("Z")
    assert library["event"] == "from a library"
    assert library["logger"] == "asyncpg"
    assert broken["event"] == "record_broken"
    assert (
        'raise ValueError("broken")' in broken["exception"]
        or "ValueError: broken" in (broken["exception"])
    )


def test_the_console_is_for_people_and_without_colour_where_it_is_no_terminal() -> None:
    lines = logged("CONSOLE")
    assert "buckets_taken" in lines[0]
    assert "count=3" in lines[0]
    assert any("ValueError: broken" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("log_format", ["JSON", "CONSOLE"])
def test_local_variables_are_never_logged(log_format: str) -> None:
    assert "whsec_hidden" not in "\n".join(logged(log_format)).replace('fails("whsec_hidden")', "")


@pytest.mark.parametrize("level, count", [("DEBUG", 4), ("INFO", 3), ("WARNING", 2), ("ERROR", 1)])
def test_the_level_is_the_least_that_is_logged(level: str, count: int) -> None:
    assert len(logged("JSON", level)) == count
