"""A place behind the port, and the process that runs there: started, heard, asked, ended.

Theory of operation. The supervisor holds both ends of a process's standard streams. What a process
says there is in `worker.py`; what it is asked is one byte, four times in the silence that it is
allowed, and its event loop answers. Four questions in a row without a word in between, and it is
killed: it cannot be told to end, and as long as it lives the kernel deals connections out to it.

Questions are counted, not seconds. While the machine is suspended, or this process is stopped,
nothing is asked, and so nobody owes an answer. Who has not said a word yet is not judged: before
its event loop runs it holds no port. Must not know when a process is started, nor why.
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

_QUESTIONS = 4
_QUESTION = b"?"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a process ended."""

    code: int
    """Its exit code; less than 0: the signal that ended it."""
    sentence: str
    """Why it could not start, if it said so."""
    served_s: float
    """How long it had served; 0: it never did."""


class WorkerProcess:
    """A place, and the process that runs there."""

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        silence_s: int,
        is_stopping: asyncio.Event,
    ) -> None:
        """`silence_s`: what a process may keep silent for; 0: for ever."""
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
        """Start a process and wait for its end."""
        try:
            process = await asyncio.create_subprocess_exec(
                *_interpreter(),
                *self._command,
                stdin=PIPE,  # held open: its end tells the process that nobody is there any more
                stdout=PIPE,
                env=self._environ,
                start_new_session=True,  # a terminal's Ctrl-C is passed on, and not heard twice
            )
        except OSError as error:
            return End(code=1, sentence=f"cannot start a process: {error}", served_s=0.0)
        self._process = process
        if self._is_stopping.is_set():  # it was being started when all were told to stop
            self.signal(signal.SIGTERM)
        asking = asyncio.create_task(self._ask(process))
        sentence, served_s = await self._hear(process)
        self.is_serving.clear()
        code = await process.wait()
        asking.cancel()
        self._process = None
        was_early = not served_s and code == -signal.SIGTERM  # it had not even begun to listen
        self.last_code = 0 if was_early else code
        return End(code=code, sentence=sentence, served_s=served_s)

    async def _hear(self, process: Process) -> tuple[str, float]:
        """What a process says until its end: why it cannot start, or how long it served."""
        sentence, since_s = "", None
        loop = asyncio.get_running_loop()
        self._unanswered = None
        while process.stdout is not None and (line := await process.stdout.readline()):
            self._unanswered = 0
            said = line.decode("utf-8", "replace").strip()
            if said == READY:
                self.is_serving.set()
                since_s = loop.time()
            elif said.startswith(FAILED):
                sentence = sentence_of(said)
        return sentence, 0.0 if since_s is None else loop.time() - since_s

    async def _ask(self, process: Process) -> None:
        """Ask a process whether its event loop turns, and kill it once it does not."""
        while self._silence_s:
            await asyncio.sleep(self._silence_s / _QUESTIONS)
            if self._is_stopping.is_set():  # how long that may take is its grace's to say
                return
            if self._unanswered == _QUESTIONS:
                _log.error("worker_hung", worker=self.number, silent_s=self._silence_s)
                self.signal(signal.SIGKILL)
                return
            if self._unanswered is not None:
                self._unanswered += 1
            if process.stdin is not None and not process.stdin.is_closing():
                process.stdin.write(_QUESTION)

    @property
    def pid(self) -> int | None:
        """Of its process; None where none runs."""
        return None if self._process is None else self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Pass a signal on, if there is anybody to hear it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def _interpreter() -> Sequence[str]:
    """How this process was started, up to the command: the same code, from the same path."""
    was_module = os.path.basename(sys.argv[0]) == "__main__.py"  # noqa: PTH119 - a name, not a file
    is_safe = sys.flags.safe_path or not was_module
    return (sys.executable, *(["-P"] if is_safe else []), "-m", "hookline_service")
