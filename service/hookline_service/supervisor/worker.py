"""One of several processes behind one port: a node, and the lines it writes to its supervisor.

It ends when its standard input ends, so that it does not outlive the supervisor. Each input before
that is a liveness probe. It writes lines to its standard output:

    alive               the event loop's answer to a probe
    ready               the node serves
    failed "SENTENCE"   the node cannot start; the process ends then
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress

from hookline_service.app import StartError
from hookline_service.config import ListenAddress, Settings
from hookline_service.supervisor.node import run_node
from hookline_service.telemetry import mark_lines

ALIVE = "alive"
READY = "ready"
FAILED = "failed "
CANNOT_START = 2


def run_worker(settings: Settings, place: str) -> int:
    """Run a node until it stops, and return the exit code; `place` is `NAME/NUMBER`."""
    mark_lines(worker=int(place.rpartition("/")[2]))

    def announce(_address: ListenAddress) -> None:
        _write(READY)

    def answer() -> None:
        _write(ALIVE)

    try:
        run_node(settings, announce, stop_with_input=True, answer=answer, place=place)
    except StartError as error:
        _write(FAILED + json.dumps(str(error)))
        return CANNOT_START
    return 0


def _write(line: str) -> None:
    with suppress(OSError):  # the supervisor has ended: the end of the input stops this process
        # Unbuffered: a buffer would keep an unread line, and fail to flush it at exit.
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


def sentence_of(line: str) -> str:
    """Return the reason in a `failed` line."""
    return str(json.loads(line.removeprefix(FAILED)))
