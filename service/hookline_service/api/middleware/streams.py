"""The streams of a server: none ends by itself, so what ends them is here.

A stop ends all of them; a caller who is not known any more has his own ended. A stream that takes
messages is not cut off: its reading ends with the reason, so that it may answer what it has read.
Only where it is not waiting for a message and still goes on at the next look, it is cut off.

Must not know what is streamed, nor who may.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

from hookline_service.api.middleware.errors import interrupted
from hookline_service.domain.errors import (
    HooklineError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)

RECHECK_S: Final = 0.5
"""How often the caller of a stream is asked for again."""

_log = logging.getLogger(__name__)

T = TypeVar("T")
Recheck = Callable[[], Awaitable[object]]


class Stream:
    """One call that streams; made in the call's own task."""

    def __init__(self, *, takes_messages: bool) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines of a server run in tasks
        self._task = task
        self._takes_messages = takes_messages
        self._reader: asyncio.Task[Any] | None = None
        """Who waits for the next message, or until it may be taken."""
        self.idle_since_s: float | None = None
        """Since when its next message is awaited, by the loop's clock; None: none is."""
        self.reason: HooklineError | None = None
        """Why we have ended it; None: we have not."""

    def end(self, reason: HooklineError) -> None:
        """End it, or its reading."""
        was_told = self.reason is not None
        self.reason = self.reason or reason
        if self._reader is not None:
            self._reader.cancel()
        elif was_told or not self._takes_messages:
            self._task.cancel()

    async def messages(
        self, requests: AsyncIterator[bytes], admit: Callable[[bytes], Any], recheck: Recheck
    ) -> AsyncIterator[Any]:
        """What the client sends, read, its sender known; raises what ends the reading.

        Where it comes too fast nothing is refused: no more is taken from the connection meanwhile.
        """
        loop = asyncio.get_running_loop()
        while self.reason is None:
            self.idle_since_s = loop.time()
            try:
                request = await self._or_end(anext(requests))
            except StopAsyncIteration:
                return
            finally:
                self.idle_since_s = None
            await recheck()
            yield await self._admitted(request, admit)
        raise self.reason

    async def _admitted(self, request: bytes, admit: Callable[[bytes], Any]) -> Any:  # noqa: ANN401 (any message)
        while True:
            try:
                return admit(request)
            except ResourceExhaustedError as error:
                if error.retry_after_s is None:
                    raise
                wait_s = error.retry_after_s
            await self._or_end(asyncio.sleep(wait_s))

    async def _or_end(self, waited_for: Awaitable[T]) -> T:
        """Wait for it; raises what ends the reading meanwhile."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines of a server run in tasks
        self._reader = task
        try:
            return await waited_for
        except asyncio.CancelledError:
            if self.reason is not None and not task.uncancel():  # else the client is gone as well
                raise self.reason from None
            raise
        finally:
            self._reader = None


class Streams:
    """All streams of a server."""

    def __init__(self, *, recheck_s: float = RECHECK_S) -> None:
        self._recheck_s = recheck_s
        self._open: set[Stream] = set()
        self.is_stopping = False

    def end_all(self) -> None:
        """End every one, and refuse new ones."""
        self.is_stopping = True
        for stream in self._open:
            stream.end(interrupted())

    def enter(self, stream: Stream) -> None:
        """It begins. Raises where none may begin any more."""
        if self.is_stopping:
            raise interrupted()
        self._open.add(stream)

    def leave(self, stream: Stream) -> None:
        """It has ended."""
        self._open.discard(stream)

    async def follow(self, stream: Stream, recheck: Recheck) -> None:
        """Ask again and again who calls, and end the stream once nobody knows.

        To be cancelled when it has ended.

        What cannot be told at present ends nothing: each message is asked for by itself.
        """
        while True:
            await asyncio.sleep(self._recheck_s)
            try:
                await recheck()
            except (UnauthenticatedError, PermissionDeniedError) as error:
                stream.end(error)
            except Exception as error:  # noqa: BLE001 - the next message, or call, tells of it
                _log.debug("a stream's caller could not be asked for: %r", error)
