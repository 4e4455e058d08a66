"""Slots for requests that are being read: a concurrency limit with fair queueing and timeouts.

gRPC's core holds as much of a message that is being read as its sender has sent, up to the largest
message, and does not report how much that is. So the number of reads bounds the memory: each counts
as the largest message. A request that arrived with its call is read at once, and its slot is free
again; a slow request keeps its slot until `timeout_s`, or until others wait and it is older than
`patience_s`. A caller has at most as many slots as are free, and waiting callers take turns.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from hookline_service.domain.errors import Reason, ResourceExhaustedError, UnavailableError

TICK_S: Final = 0.1
"""The interval at which the ages of reads and waits are checked."""

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Wait:
    turn: asyncio.Future[None]
    began_s: float


class ReadSlots:
    """The slots of one kind of calls."""

    def __init__(self, setting: str, slots: int, *, timeout_s: float, patience_s: float) -> None:
        """`setting` is the name that refusals give."""
        self._setting = setting
        self._slots = slots
        self._timeout_s = timeout_s
        self._patience_s = min(patience_s, timeout_s)
        self._used: dict[str, int] = {}
        self._free = slots
        self._reads: dict[asyncio.Task[object], float] = {}
        """The tasks that read, and when each began; the oldest first."""
        self._ended: dict[asyncio.Task[object], str] = {}
        """Why reads were ended that have not noticed it yet."""
        self._waits: OrderedDict[str, deque[_Wait]] = OrderedDict()
        """By caller; the caller whose turn is next comes first."""
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, caller: str, request: Callable[[], Awaitable[T]]) -> T:
        """Begin a request once there is a slot for it, and await it.

        Raise `ResourceExhaustedError` where no slot is free in time, and `UnavailableError` where
        the request does not arrive in time.
        """
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._look)
        if self._waits or not self._may_take(caller):
            await self._turn(caller, loop)
        else:
            self._take(caller)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines of a server run in tasks
        self._reads[task] = loop.time()
        try:
            return await request()
        except asyncio.CancelledError:
            reason = self._ended.get(task)
            if reason is not None and not task.uncancel():
                raise UnavailableError(reason, Reason.OVERLOADED, retry_after_s=1.0) from None
            raise
        finally:
            del self._reads[task]
            if self._ended:
                self._ended.pop(task, None)
            self._give(caller)

    def _may_take(self, caller: str) -> bool:
        return self._used.get(caller, 0) < self._free

    def _take(self, caller: str) -> None:
        self._free -= 1
        self._used[caller] = self._used.get(caller, 0) + 1

    def _give(self, caller: str) -> None:
        self._free += 1
        left = self._used[caller] - 1
        if left:
            self._used[caller] = left
        else:
            del self._used[caller]
        if self._waits:
            self._give_turns()

    async def _turn(self, caller: str, loop: asyncio.AbstractEventLoop) -> None:
        wait = _Wait(loop.create_future(), loop.time())
        self._waits.setdefault(caller, deque()).append(wait)
        self._give_turns()
        try:
            await wait.turn
        except asyncio.CancelledError:
            if wait.turn.done() and not wait.turn.cancelled() and wait.turn.exception() is None:
                self._give(caller)  # the turn came, and the call was cancelled
            raise

    def _give_turns(self) -> None:
        """Let waiting reads begin, one of each caller in turn."""
        for caller in list(self._waits):
            if not self._free:
                return
            waits = self._waits[caller]
            while waits and waits[0].turn.done():  # its call was cancelled
                waits.popleft()
            if waits and self._may_take(caller):
                self._take(caller)
                waits.popleft().turn.set_result(None)
            if waits:
                self._waits.move_to_end(caller)
            else:
                del self._waits[caller]

    def _look(self) -> None:
        """End reads and waits that have lasted too long."""
        now_s = asyncio.get_running_loop().time()
        wanted = sum(map(len, self._waits.values()))
        for task, began_s in self._reads.items():
            age_s = now_s - began_s
            is_late, gives_way = age_s >= self._timeout_s, wanted and age_s >= self._patience_s
            if not is_late and not gives_way:
                break
            wanted = max(0, wanted - 1)
            if task not in self._ended:
                self._ended[task] = self._why_ended(is_late=is_late)
                task.cancel()
        for waits in self._waits.values():
            for wait in waits:
                if now_s - wait.began_s >= self._timeout_s and not wait.turn.done():
                    wait.turn.set_exception(self._no_slot())
        self._give_turns()
        is_idle = not self._reads and not self._waits
        self._timer = None if is_idle else asyncio.get_running_loop().call_later(TICK_S, self._look)

    def _why_ended(self, *, is_late: bool) -> str:
        if is_late:
            return f"the request did not come within {self._timeout_s:g} s; nothing was done"
        return (
            f"the request did not come within {self._patience_s:g} s, and others wait to be read"
            f" ({self._setting}); nothing was done, repeat the call"
        )

    def _no_slot(self) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            f"requests of {self._slots} calls are being read, which is as many as"
            f" {self._setting} allows; nothing was done, repeat the call with a backoff",
            Reason.OVERLOADED,
            retry_after_s=1.0,
            metadata={"limit": self._setting, "maximum": str(self._slots)},
        )
