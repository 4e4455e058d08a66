"""Several processes behind one port, each a node of its own; what dies is started anew.

Theory of operation. The supervisor has the port, the signals and the processes, and nothing of a
node: neither a connection to the database nor a gRPC object. Each process is started, never forked,
at a place that keeps its name; who starts there again is told so, and need not wait for the lease
of the one that the supervisor has seen end (`ownership.py`).

    start      all at once; where one cannot start, all are stopped, and its sentence is told once
    a death    a line in the log, then another start: at once after a clean end, after a pause that
               doubles to half a minute after any other; where no process serves any more and none
               can start, that is the end
    a signal   is passed on; a second one makes them hurry; the supervisor ends after the last
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import structlog
import uvloop

from service.app import StartError
from service.config import ListenAddress, Settings
from service.supervisor.node import listen_for_signals, raise_descriptor_limit, watch_input
from service.supervisor.port import reserved
from service.supervisor.worker import FAILED, READY, sentence_of

_log = structlog.get_logger(__name__)

PAUSE_S = 0.5
PAUSE_MAX_S = 30.0
PROVEN_S = 60.0
"""A process that has served for so long begins with the short pause again."""
KILL_AFTER_S = 10.0
"""A process that has not ended so long after its grace is killed."""


def run_workers(
    settings: Settings,
    announce: Callable[[ListenAddress], None],
    command: Sequence[str],
    *,
    stop_with_input: bool = False,
) -> int:
    """Run `settings.workers` processes of `command` until told to stop; the exit code.

    `announce` is called once all serve; `stop_with_input` is as `run_node` has it. 1: one of them
    did not end cleanly. Raises `StartError`.
    """
    raise_descriptor_limit()
    with reserved(settings.listen) as address:
        supervisor = Supervisor(settings, command, address)
        return uvloop.run(supervisor.run(announce, stop_with_input=stop_with_input))


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """How a process ended."""

    code: int
    """Its exit code; less than 0: the signal that ended it."""
    sentence: str
    """Why it could not start, if it said so."""
    served_s: float
    """How long it had served; 0: it never did."""


class _Worker:
    """A place, and the process that runs there."""

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environ: Mapping[str, str],
        is_stopping: asyncio.Event,
    ) -> None:
        self.number = number
        self.is_serving = asyncio.Event()
        self.last_code = 0
        self._command = command
        self._environ = environ
        self._is_stopping = is_stopping
        self._process: Process | None = None

    async def run(self) -> _End:
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
            return _End(code=1, sentence=f"cannot start a process: {error}", served_s=0.0)
        self._process = process
        if self._is_stopping.is_set():  # it was being started when all were told to stop
            self.signal(signal.SIGTERM)
        sentence, served_s = await self._hear(process)
        self.is_serving.clear()
        code = await process.wait()
        self._process = None
        was_early = not served_s and code == -signal.SIGTERM  # it had not even begun to listen
        self.last_code = 0 if was_early else code
        return _End(code=code, sentence=sentence, served_s=served_s)

    async def _hear(self, process: Process) -> tuple[str, float]:
        """What a process says until its end: why it cannot start, or how long it served."""
        sentence, since_s = "", None
        loop = asyncio.get_running_loop()
        while process.stdout is not None and (line := await process.stdout.readline()):
            said = line.decode("utf-8", "replace").strip()
            if said == READY:
                self.is_serving.set()
                since_s = loop.time()
            elif said.startswith(FAILED):
                sentence = sentence_of(said)
        return sentence, 0.0 if since_s is None else loop.time() - since_s

    @property
    def pid(self) -> int | None:
        """Of its process; None where none runs."""
        return None if self._process is None else self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Pass a signal on, if there is anybody to hear it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


class Supervisor:
    """Keeps the processes running."""

    def __init__(self, settings: Settings, command: Sequence[str], address: ListenAddress) -> None:
        self._settings = settings
        self._command = command
        self._address = address
        self._workers: list[_Worker] = []
        self._is_stopping = asyncio.Event()

    async def run(self, announce: Callable[[ListenAddress], None], *, stop_with_input: bool) -> int:
        """Start all, announce, keep them running until a signal comes, stop all; the exit code."""
        asked = listen_for_signals(self._hurry)
        if stop_with_input:
            watch_input(asked.set)
        # Unguessable, so that no other supervisor's places are taken for these.
        name = secrets.token_hex(8)
        environ = os.environ | {"HOOKLINE_LISTEN": str(self._address)}
        self._workers = [
            _Worker(
                number,
                (*self._command, "--worker", f"{name}/{number}"),
                environ,
                self._is_stopping,
            )
            for number in range(1, self._settings.workers + 1)
        ]
        keeping = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        stopping = asyncio.create_task(asked.wait())
        try:
            if await self._serve(keeping, stopping):
                _log.info("workers_serve", count=len(self._workers), address=str(self._address))
                announce(self._address)
                await asyncio.wait({stopping, *keeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            ends = await self._stop(keeping)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        return int(any(worker.last_code for worker in self._workers))

    async def _serve(
        self, keeping: Sequence[asyncio.Task[None]], stopping: asyncio.Task[Literal[True]]
    ) -> bool:
        """Wait until all serve; False where a signal or a failure came first."""
        serving = asyncio.create_task(self._all_serve())
        await asyncio.wait({serving, stopping, *keeping}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            return True
        serving.cancel()
        return False

    async def _all_serve(self) -> None:
        for worker in self._workers:
            await worker.is_serving.wait()

    async def _keep(self, worker: _Worker) -> None:
        """Run a process at this place, again and again. Raises `StartError` if that is in vain."""
        failures, has_served = 0, False
        while not self._is_stopping.is_set():
            end = await worker.run()
            if self._is_stopping.is_set():
                return
            has_served = has_served or end.served_s > 0
            if not has_served or (end.sentence and not self._anybody_serves()):
                raise StartError(
                    end.sentence
                    or f"a worker process {_told(end.code)} before it served; the log says why"
                )
            failures = 0 if end.served_s >= PROVEN_S or end.code == 0 else failures + 1
            pause_s = min(PAUSE_S * 2 ** (failures - 1), PAUSE_MAX_S) if failures else 0.0
            _log.warning(
                "worker_ended",
                worker=worker.number,
                end=_told(end.code),
                reason=end.sentence,
                served_s=round(end.served_s, 1),
                starts_again_in_s=pause_s,
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), pause_s)

    def _anybody_serves(self) -> bool:
        return any(worker.is_serving.is_set() for worker in self._workers)

    def _hurry(self) -> None:
        for worker in self._workers:
            worker.signal(signal.SIGTERM)

    async def _stop(self, keeping: Sequence[asyncio.Task[None]]) -> Sequence[BaseException | None]:
        """Stop all, each as long as its grace allows; how each was kept."""
        self._is_stopping.set()
        ending = asyncio.gather(*keeping, return_exceptions=True)
        self._hurry()
        patience_s = self._settings.stop_grace_s + KILL_AFTER_S
        done, _ = await asyncio.wait({ending}, timeout=patience_s)
        if not done:
            _log.error("workers_killed", workers=[one.number for one in self._workers if one.pid])
            for worker in self._workers:
                worker.signal(signal.SIGKILL)
        return await ending


def _told(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _interpreter() -> Sequence[str]:
    """How this process was started, up to the command: the same code, from the same path."""
    was_module = os.path.basename(sys.argv[0]) == "__main__.py"  # noqa: PTH119 - a name, not a file
    is_safe = sys.flags.safe_path or not was_module
    return (sys.executable, *(["-P"] if is_safe else []), "-m", "service")
