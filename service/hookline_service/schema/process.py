"""The evaluator process: what may be expensive is checked there, and can be killed.

Theory of operation. One process a node, started when it is first needed, with limits that the
kernel enforces: memory by its address space, time by a timer over processor time that is set for
each job. A job that exceeds them ends the process; what it had answered counts, and the next job
starts another process. One job runs at a time. Tenants take turns, so a tenant whose jobs are all
killed delays another one by at most one job and one start; the number of waiting jobs is bounded.

The process inherits no environment and no descriptors but its three pipes: it holds no secret.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import orjson
import structlog

from hookline_service.domain.errors import Reason, ResourceExhaustedError, UnavailableError
from hookline_service.domain.limits import Limits
from hookline_service.schema import evaluation

_log = structlog.get_logger(__name__)

CPU_MS: Final = "HOOKLINE_MAX_SCHEMA_CPU_MS"
MEMORY_MB: Final = "HOOKLINE_MAX_SCHEMA_MEMORY_MB"

_LINE_BYTES: Final = 1024 * 1024
_START_S: Final = 10.0
_WALL_PER_CPU: Final = 20
"""How much longer than its processor time a job may take, on a machine that is busy."""
_RETRY_AFTER_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """Events of one call, each with the text of its schema."""

    events: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the process answered before the job ended, or was ended."""

    lines: Sequence[dict[str, Any]]
    exceeded: str
    """The setting that ended it; empty: none did."""


class EvaluatorProcess:
    """The process, and the jobs that wait for it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: Process | None = None
        self._turns = _Turns()
        self._running: set[asyncio.Task[Answers]] = set()
        self._is_stopped = False

    async def run(self, tenant_id: str, job: Job) -> Answers:
        """Run a job when it is its tenant's turn.

        Raises `ResourceExhaustedError`: too many wait; `UnavailableError`: it could not be run. A
        caller that gives up does not end its job: the process would have to be killed for that.
        """
        limit = self._limits.max_queued_schema_checks
        if not self._turns.has_capacity(tenant_id, limit):
            raise ResourceExhaustedError(
                "too many events wait to be checked against their event types' schemas: the setting"
                f" HOOKLINE_MAX_QUEUED_SCHEMA_CHECKS allows {limit} calls, fewer of one tenant;"
                " nothing was stored, repeat the call",
                Reason.OVERLOADED,
                metadata={"limit": "HOOKLINE_MAX_QUEUED_SCHEMA_CHECKS"},
                retry_after_s=_RETRY_AFTER_S,
            )
        turn = self._turns.join(tenant_id)
        task = asyncio.create_task(self._run_in_turn(turn, job), name="schema check")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def stop(self) -> None:
        """End the process, and what runs in it."""
        self._is_stopped = True
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._end()

    async def _run_in_turn(self, turn: asyncio.Future[None], job: Job) -> Answers:
        try:
            await turn
            return await self._run(job)
        finally:
            if turn.done() and not turn.cancelled():
                self._turns.release()

    async def _run(self, job: Job) -> Answers:
        try:
            process = await self._started()
        except OSError as error:
            raise _unavailable(f"cannot start a process: {error}") from error
        lines: list[dict[str, Any]] = []
        cpu_s = self._limits.max_schema_cpu_ms / 1_000
        try:
            async with asyncio.timeout(_START_S + _WALL_PER_CPU * cpu_s):
                done = await _exchange(process, _encoded(job, cpu_s), lines)
        except BaseException as error:
            await self._end()
            if isinstance(error, TimeoutError):
                raise _unavailable("the machine is too busy") from error
            raise
        if done is not None:
            if done["is_last"]:
                await self._end()
            return Answers(lines, "")
        code = await process.wait()
        self._process = None
        is_slow = code == -signal.SIGPROF
        exceeded = CPU_MS if is_slow else MEMORY_MB
        _log.warning("schema_check_killed", exceeded=exceeded, exit_code=code)
        return Answers(lines, exceeded)

    async def _started(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        if self._is_stopped:
            raise _unavailable("this node is shutting down")
        paths = {str(Path(module.__file__ or "").parents[1]) for module in (jsonschema_rs, orjson)}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _PROGRAM),
            *(evaluation.__file__, str(self._limits.max_schema_memory_mb), *sorted(paths)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={},
            limit=_LINE_BYTES,
            start_new_session=True,  # a terminal's Ctrl-C is for the node alone
        )
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


_PROGRAM: Final = (
    "import runpy, sys; path = sys.argv.pop(1); sys.path += sys.argv[2:];"
    " runpy.run_path(path, run_name='__main__')"
)
"""Site packages are found by the paths given, without `site`: the start takes half as long."""


def _encoded(job: Job, cpu_s: float) -> list[bytes]:
    schemas: dict[str, int] = {}
    events = [(schemas.setdefault(text, len(schemas)), len(data)) for text, data in job.events]
    header = orjson.dumps({"schemas": list(schemas), "events": events, "cpu_s": cpu_s})
    return [len(header).to_bytes(4, "big"), header, *(data for _, data in job.events)]


async def _exchange(
    process: Process, request: list[bytes], lines: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Send a job and collect the answers; the last line, or None: the process ended before it."""
    if process.stdin is None or process.stdout is None:
        return None
    with suppress(ConnectionError):
        process.stdin.writelines(request)
        await process.stdin.drain()
    while line := await process.stdout.readline():
        if not line.endswith(b"\n"):
            return None
        answer: dict[str, Any] = orjson.loads(line)
        if "done" in answer:
            return answer
        lines.append(answer)
    return None


def _unavailable(cause: str) -> UnavailableError:
    return UnavailableError(
        f"events could not be checked against their schemas ({cause}); nothing was stored, repeat"
        " the call",
        Reason.OVERLOADED,
        retry_after_s=_RETRY_AFTER_S,
    )


class _Turns:
    """One place, and those that wait for it: tenants take turns."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Each tenant's, and the tenant whose turn is next comes first."""

    def has_capacity(self, tenant_id: str, limit: int) -> bool:
        """Whether one more may wait: a tenant has at most as many places as are left free."""
        free = limit - sum(map(len, self._waiting.values()))
        return len(self._waiting.get(tenant_id, ())) < free

    def join(self, tenant_id: str) -> asyncio.Future[None]:
        """Return what is done once it is the caller's turn, which ends with `release`."""
        turn = asyncio.get_running_loop().create_future()
        if self._is_taken:
            self._waiting.setdefault(tenant_id, deque()).append(turn)
        else:
            self._is_taken = True
            turn.set_result(None)
        return turn

    def release(self) -> None:
        """Give the place to the next that still waits."""
        while self._waiting:
            tenant_id = next(iter(self._waiting))
            turns = self._waiting.pop(tenant_id)
            turn = turns.popleft()
            if turns:
                self._waiting[tenant_id] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False
