"""One of several processes behind one port: a node, and what it tells its supervisor.

It says so in lines on its standard output, and ends when its standard input does, so that it
outlives no supervisor, however that ends. What comes there before is a question whether its event
loop turns, and that loop answers:

    alive               it does
    ready               it serves
    failed "SENTENCE"   it cannot start; then it ends
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
    """Run a node at the supervisor's `place` (`…/NUMBER`) to its end; the exit code."""
    mark_lines(worker=int(place.rpartition("/")[2]))

    def announce(_address: ListenAddress) -> None:
        _say(READY)

    def answer() -> None:
        _say(ALIVE)

    try:
        run_node(settings, announce, stop_with_input=True, answer=answer, place=place)
    except StartError as error:
        _say(FAILED + json.dumps(str(error)))
        return CANNOT_START
    return 0


def _say(line: str) -> None:
    with suppress(OSError):  # nobody is there any more; the end of the input tells the rest
        # Past the buffer, which would keep what nobody read, and fail with it at the very end.
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


def sentence_of(line: str) -> str:
    """What a worker said that cannot start."""
    return str(json.loads(line.removeprefix(FAILED)))
