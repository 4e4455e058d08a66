"""Several processes behind one port, each a node of its own; what dies is started anew.

Theory of operation. The supervisor has the port, the signals and the processes, and nothing of a
node: neither a connection to the database nor a gRPC object. Each process is started, never forked,
at a place that keeps its name; who starts there again is told so, and need not wait for the lease
of the one that the supervisor has seen end (`ownership.py`).

    start      all at once; where one cannot start, all are stopped, and its sentence is told once
    a death    a line in the log, then another start: at once after a clean end, after a pause that
               doubles to half a minute after any other; where no process serves any more and none
               can start, that is the end
    silence    whose event loop no longer turns is killed (`place.py`): a death like any other
    a signal   is passed on; a second one makes them hurry; the supervisor ends after the last
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

import structlog
import uvloop

from hookline_service.app import StartError
from hookline_service.config import ListenAddress, Settings
from hookline_service.supervisor.node import listen_for_signals, raise_descriptor_limit, watch_input
from hookline_service.supervisor.port import reserved
from hookline_service.supervisor.worker_process import WorkerProcess

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


class Supervisor:
    """Keeps the processes running."""

    def __init__(self, settings: Settings, command: Sequence[str], address: ListenAddress) -> None:
        self._settings = settings
        self._command = command
        self._address = address
        self._workers: list[WorkerProcess] = []
        self._is_stopping = asyncio.Event()

    async def run(self, announce: Callable[[ListenAddress], None], *, stop_with_input: bool) -> int:
        """Start all, announce, keep them running until a signal comes, stop all; the exit code."""
        asked = listen_for_signals(self._tell_to_end)
        if stop_with_input:
            watch_input(asked.set)
        # Unguessable, so that no other supervisor's places are taken for these.
        name = secrets.token_hex(8)
        environ = os.environ | {"HOOKLINE_LISTEN": str(self._address)}
        self._workers = [
            WorkerProcess(
                number,
                (*self._command, "--worker", f"{name}/{number}"),
                environ,
                silence_s=self._settings.worker_silence_s,
                is_stopping=self._is_stopping,
            )
            for number in range(1, self._settings.workers + 1)
        ]
        keeping = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        stopping = asyncio.create_task(asked.wait())
        try:
            if await self._serve(keeping, stopping):
                _log.info("workers_started", count=len(self._workers), address=str(self._address))
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

    async def _keep(self, worker: WorkerProcess) -> None:
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

    def _tell_to_end(self) -> None:
        for worker in self._workers:
            worker.signal(signal.SIGTERM)

    async def _stop(self, keeping: Sequence[asyncio.Task[None]]) -> Sequence[BaseException | None]:
        """Stop all, each as long as its grace allows; how each was kept."""
        self._is_stopping.set()
        ending = asyncio.gather(*keeping, return_exceptions=True)
        self._tell_to_end()
        patience_s = self._settings.stop_grace_s + KILL_AFTER_S
        done, _ = await asyncio.wait({ending}, timeout=patience_s)
        if not done:
            _log.error("workers_killed", workers=[one.number for one in self._workers if one.pid])
            for worker in self._workers:
                worker.signal(signal.SIGKILL)
        return await ending


def _told(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
