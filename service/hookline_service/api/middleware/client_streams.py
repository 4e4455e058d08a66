"""Bounds on streams that send messages: how many are open at once, and how many bytes they hold.

A client may send a largest message on an open stream at any time, and gRPC's core then holds it
whole before the node reads it: so each open stream counts as one such message, however little it
sends (`config/memory.py`). Where all are taken, an idle stream is ended for a new one.

Messages that were read and are not answered yet have one byte budget for all streams. A stream
beyond it is not read until something was answered; one with nothing to answer may always read one
message, so that each goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from hookline_service.api.middleware.byte_budget import ByteBudget
from hookline_service.api.middleware.streams import Stream
from hookline_service.domain.errors import Reason, ResourceExhaustedError, UnavailableError


class ClientStreams:
    """The open streams that send messages, by caller."""

    def __init__(self, maximum: int, idle_s: float) -> None:
        self._maximum = maximum
        self._idle_s = idle_s
        self._open: dict[Stream, str] = {}
        self._counts = Counter[str]()

    def enter(self, caller: str, stream: Stream) -> None:
        """Count a stream, ending an idle one where a caller has as many as are free.

        An idle stream of the same caller is ended if it has any. Raise `ResourceExhaustedError`
        where no stream has been idle for long enough.
        """
        own = self._counts[caller]
        if own >= self._maximum - len(self._open):
            idle = self._longest_idle(caller if own else None)
            if idle is None:
                raise self._refusal(own)
            idle.end(self._gives_way())
            self.leave(idle)
        self._open[stream] = caller
        self._counts[caller] += 1

    def leave(self, stream: Stream) -> None:
        """Count a stream no more, if it is counted."""
        caller = self._open.pop(stream, None)
        if caller is None:
            return
        self._counts[caller] -= 1
        if not self._counts[caller]:
            del self._counts[caller]

    def _longest_idle(self, caller: str | None) -> Stream | None:
        longest, since_s = None, asyncio.get_running_loop().time() - self._idle_s
        for stream, holder in self._open.items():
            idle_since_s = stream.idle_since_s
            if idle_since_s is None or caller not in {None, holder} or idle_since_s > since_s:
                continue
            if longest is None or idle_since_s < since_s:
                longest, since_s = stream, idle_since_s
        return longest

    def _gives_way(self) -> UnavailableError:
        return UnavailableError(
            f"the stream sent no message for {self._idle_s:g} s, and another takes its place"
            f" (HOOKLINE_MAX_CLIENT_STREAMS allows {self._maximum}); open it again to send",
            Reason.OVERLOADED,
            retry_after_s=1.0,
        )

    def _refusal(self, own: int) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            f"{len(self._open)} streams that send messages are open, {own} of them this caller's,"
            f" and none of those has been idle for {self._idle_s:g} s (HOOKLINE_STREAM_IDLE_S); a"
            f" caller may have as many as are free of {self._maximum}"
            " (HOOKLINE_MAX_CLIENT_STREAMS). Publish by calls, or repeat with a backoff",
            Reason.OVERLOADED,
            retry_after_s=1.0,
            metadata={"limit": "HOOKLINE_MAX_CLIENT_STREAMS", "maximum": str(self._maximum)},
        )


class StreamBudget:
    """Bytes of messages that streams have read and not answered yet, by caller."""

    def __init__(self, maximum_bytes: int) -> None:
        self._budget = ByteBudget(
            "messages of streams", "HOOKLINE_MAX_CLIENT_STREAM_BYTES", maximum_bytes
        )
        self._waiting: dict[Callable[[], None], None] = {}

    @property
    def held_bytes(self) -> int:
        """The bytes that all streams hold."""
        return self._budget.held_bytes

    def take(self, caller: str, size: int) -> None:
        """Add bytes of a message that was read, even beyond the budget."""
        self._budget.take(caller, size, may_refuse=False)

    def give(self, caller: str, size: int) -> None:
        """Subtract bytes, and call the waiting streams to check again."""
        self._budget.give(caller, size)
        waiting, self._waiting = self._waiting, {}
        for check_again in waiting:
            check_again()

    def has_capacity(self, caller: str, check_again: Callable[[], None]) -> bool:
        """Return whether a caller may hold more; if not, the next `give` calls `check_again`."""
        if self._budget.has_capacity(caller):
            return True
        self._waiting[check_again] = None
        return False

    def forget(self, check_again: Callable[[], None]) -> None:
        """Do not call `check_again` any more."""
        self._waiting.pop(check_again, None)
