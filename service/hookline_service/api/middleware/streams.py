"""The open streams of a server, and what ends them: a stream need not end by itself.

A stop of the server ends all streams; a caller whose credentials are no longer valid has its own
ended. A stream that takes messages is not cancelled at once: its reading ends with the reason, so
that it can answer what it has read. It is cancelled only if it does not wait for a message and has
not ended by the next check.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

import structlog

from hookline_service.api.middleware.errors import interrupted
from hookline_service.domain.errors import (
    HooklineError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)

RECHECK_S: Final = 0.5
"""The interval at which the caller of a stream is authenticated again."""

_log = structlog.get_logger(__name__)

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
        """The task that waits for the next message, or until it may be taken."""
        self.idle_since_s: float | None = None
        """Since when its next message is awaited, by the loop's clock; None: it is not."""
        self.reason: HooklineError | None = None
        """Why the server has ended it; None: it has not."""

    def end(self, reason: HooklineError) -> None:
        """End the stream's reading; where it does not read, the stream."""
        was_ended = self.reason is not None
        self.reason = self.reason or reason
        if self._reader is not None:
            self._reader.cancel()
        elif was_ended or not self._takes_messages:
            self._task.cancel()

    async def messages(
        self, requests: AsyncIterator[bytes], admit: Callable[[bytes], Any], recheck: Recheck
    ) -> AsyncIterator[Any]:
        """Yield the client's messages, decoded, each after authenticating the caller again.

        Raise the reason for which the stream is ended. Messages that exceed a rate are not refused:
        none is taken from the connection meanwhile, which is backpressure.
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
        """Await something. Raise the reason if the stream is ended meanwhile."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines of a server run in tasks
        self._reader = task
        try:
            return await waited_for
        except asyncio.CancelledError:
            if (
                self.reason is not None and not task.uncancel()
            ):  # else the client has disconnected as well
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
        """End every stream, and refuse new ones."""
        self.is_stopping = True
        for stream in self._open:
            stream.end(interrupted())

    def enter(self, stream: Stream) -> None:
        """Count a stream as open. Raise `interrupted()` where the server stops."""
        if self.is_stopping:
            raise interrupted()
        self._open.add(stream)

    def leave(self, stream: Stream) -> None:
        """Count a stream no more: it has ended."""
        self._open.discard(stream)

    async def recheck_repeatedly(self, stream: Stream, recheck: Recheck) -> None:
        """Authenticate the caller every `recheck_s`, and end the stream once that is refused.

        Cancelled by the caller of this when the stream has ended. An error that is no refusal ends
        nothing: each message is checked by itself.
        """
        while True:
            await asyncio.sleep(self._recheck_s)
            try:
                await recheck()
            except (UnauthenticatedError, PermissionDeniedError) as error:
                stream.end(error)
            except Exception as error:  # noqa: BLE001 - the next message's check raises it
                _log.debug("stream_reauthentication_failed", error=repr(error))
