"""Several worker processes behind one port, each a node; one that ends is restarted.

Theory of operation. The supervisor has the port, the signals and the processes, and no part of a
node: neither a database connection nor a gRPC object. Each process is started, never forked, at a
place with a fixed name. A process that restarts at a place gets its name, and so takes over the
buckets of its predecessor without waiting for that one's lease to end (`ownership.py`).

    start      all at once; if one cannot start, all are stopped, and its reason is reported once
    end        logged, then restarted: at once after exit code 0, else after a backoff that doubles
               up to `PAUSE_MAX_S`; if no process serves and none can start, the supervisor ends
    hang       a process whose event loop answers no probe is killed (`worker_process.py`)
    signal     passed on; a second signal ends the grace; the supervisor ends after the last process
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
"""A process that has served for so long resets the backoff."""
KILL_AFTER_S = 10.0
"""A process that runs for so long after its grace is killed."""


def run_workers(
    settings: Settings,
    announce: Callable[[ListenAddress], None],
    command: Sequence[str],
    *,
    stop_with_input: bool = False,
) -> int:
    """Run `settings.workers` processes of `command` until a signal; return the exit code.

    `announce` is called once all serve; `stop_with_input` is that of `run_node`. The exit code is 1
    if the last process at any place did not end cleanly. Raises `StartError`.
    """
    raise_descriptor_limit()
    with reserved(settings.listen) as address:
        supervisor = Supervisor(settings, command, address)
        return uvloop.run(supervisor.run(announce, stop_with_input=stop_with_input))


class Supervisor:
    """The processes of one `hookline serve`, restarted when they end."""

    def __init__(self, settings: Settings, command: Sequence[str], address: ListenAddress) -> None:
        self._settings = settings
        self._command = command
        self._address = address
        self._workers: list[WorkerProcess] = []
        self._is_stopping = asyncio.Event()

    async def run(self, announce: Callable[[ListenAddress], None], *, stop_with_input: bool) -> int:
        """Run all processes until a signal; return the exit code."""
        asked = listen_for_signals(self._terminate)
        if stop_with_input:
            watch_input(asked.set)
        # Random, so that the places of two supervisors have different names.
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
        """Wait until all serve; return False if a signal or a failure came first."""
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
        """Run a process at this place, and restart it. Raises `StartError` if none can start."""
        failures, has_served = 0, False
        while not self._is_stopping.is_set():
            end = await worker.run()
            if self._is_stopping.is_set():
                return
            has_served = has_served or end.served_s > 0
            if not has_served or (end.sentence and not self._any_serves()):
                raise StartError(
                    end.sentence
                    or f"a worker process {_describe_end(end.code)} before it served; see the log"
                )
            failures = 0 if end.served_s >= PROVEN_S or end.code == 0 else failures + 1
            pause_s = min(PAUSE_S * 2 ** (failures - 1), PAUSE_MAX_S) if failures else 0.0
            _log.warning(
                "worker_ended",
                worker=worker.number,
                end=_describe_end(end.code),
                reason=end.sentence,
                served_s=round(end.served_s, 1),
                starts_again_in_s=pause_s,
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), pause_s)

    def _any_serves(self) -> bool:
        return any(worker.is_serving.is_set() for worker in self._workers)

    def _terminate(self) -> None:
        for worker in self._workers:
            worker.signal(signal.SIGTERM)

    async def _stop(self, keeping: Sequence[asyncio.Task[None]]) -> Sequence[BaseException | None]:
        """Stop all within the grace, kill the rest, and return the results of `keeping`."""
        self._is_stopping.set()
        ending = asyncio.gather(*keeping, return_exceptions=True)
        self._terminate()
        patience_s = self._settings.stop_grace_s + KILL_AFTER_S
        done, _ = await asyncio.wait({ending}, timeout=patience_s)
        if not done:
            _log.error("workers_killed", workers=[one.number for one in self._workers if one.pid])
            for worker in self._workers:
                worker.signal(signal.SIGKILL)
        return await ending


def _describe_end(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
