"""The supervisor's side of one worker process: start, liveness probes, signals, end.

Theory of operation. The supervisor holds both ends of a process's standard streams. `worker` has
the lines that a process writes. A liveness probe is one byte, which the process's event loop
answers; the supervisor sends four within `silence_s`. A process that leaves four probes in a row
unanswered is killed: it cannot shut down gracefully, and the kernel still distributes connections
to it.

Probes are counted, not seconds: while the machine is suspended, or the supervisor is stopped, no
probe is sent and none can be missed. A process that has not written a line yet is not probed:
before its event loop runs it does not listen. `workers` decides when a process is started.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from hookline_service.supervisor.worker import FAILED, READY, sentence_of

_log = structlog.get_logger(__name__)

_PROBES = 4
_PROBE = b"?"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a process ended."""

    code: int
    """Its exit code; below 0: minus the number of the signal that ended it."""
    sentence: str
    """Why it could not start; empty: it reported no reason."""
    served_s: float
    """How long it served, in seconds; 0: it never did."""


class WorkerProcess:
    """A place behind the port, and the process that runs there; restarted by calling `run`."""

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        silence_s: int,
        is_stopping: asyncio.Event,
    ) -> None:
        """`silence_s`: a process that answers no probe for so long is killed; 0: never."""
        self.number = number
        self.is_serving = asyncio.Event()
        self.last_code = 0
        self._command = command
        self._environ = environ
        self._silence_s = silence_s
        self._is_stopping = is_stopping
        self._process: Process | None = None
        self._unanswered: int | None = None

    async def run(self) -> End:
        """Start a process, and return how it ended."""
        try:
            process = await asyncio.create_subprocess_exec(
                *_interpreter(),
                *self._command,
                stdin=PIPE,  # held open: the process ends when it is closed
                stdout=PIPE,
                env=self._environ,
                start_new_session=True,  # a terminal's Ctrl-C is passed on, so it arrives once
            )
        except OSError as error:
            return End(code=1, sentence=f"cannot start a process: {error}", served_s=0.0)
        self._process = process
        if self._is_stopping.is_set():  # the signal to all came while this one was started
            self.signal(signal.SIGTERM)
        probing = asyncio.create_task(self._probe(process))
        sentence, served_s = await self._read_lines(process)
        self.is_serving.clear()
        code = await process.wait()
        probing.cancel()
        self._process = None
        was_early = not served_s and code == -signal.SIGTERM  # before it handled signals
        self.last_code = 0 if was_early else code
        return End(code=code, sentence=sentence, served_s=served_s)

    async def _read_lines(self, process: Process) -> tuple[str, float]:
        """Read until the process ends; return why it could not start, and how long it served."""
        sentence, since_s = "", None
        loop = asyncio.get_running_loop()
        self._unanswered = None
        while process.stdout is not None and (line := await process.stdout.readline()):
            self._unanswered = 0
            text = line.decode("utf-8", "replace").strip()
            if text == READY:
                self.is_serving.set()
                since_s = loop.time()
            elif text.startswith(FAILED):
                sentence = sentence_of(text)
        return sentence, 0.0 if since_s is None else loop.time() - since_s

    async def _probe(self, process: Process) -> None:
        """Probe the event loop of a process, and kill a process that does not answer."""
        while self._silence_s:
            await asyncio.sleep(self._silence_s / _PROBES)
            if self._is_stopping.is_set():  # HOOKLINE_STOP_GRACE_S bounds a shutdown
                return
            if self._unanswered == _PROBES:
                _log.error("worker_hung", worker=self.number, silent_s=self._silence_s)
                self.signal(signal.SIGKILL)
                return
            if self._unanswered is not None:
                self._unanswered += 1
            if process.stdin is not None and not process.stdin.is_closing():
                process.stdin.write(_PROBE)

    @property
    def pid(self) -> int | None:
        """The process's id; None: no process runs."""
        return None if self._process is None else self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if one runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def _interpreter() -> Sequence[str]:
    """Return the interpreter's arguments: a worker runs the same code as this process."""
    was_module = os.path.basename(sys.argv[0]) == "__main__.py"  # noqa: PTH119 - a name, not a file
    is_safe = sys.flags.safe_path or not was_module
    return (sys.executable, *(["-P"] if is_safe else []), "-m", "hookline_service")
