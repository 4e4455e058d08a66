"""The outermost interceptor: every call passes here, and every exception ends here.

Theory of operation. grpc.aio answers an uncaught exception with its class and text, answers a
request that does not parse likewise, and leaves the client of a handler that raises CancelledError
waiting for ever. So each handler is wrapped, once, when its method is first called:

- its deserialiser answers `_MALFORMED` instead of raising, and the wrapper refuses that;
- an exception becomes a `Refusal` (`errors.py`);
- a CancelledError passes only if the call's own task was cancelled, as when the client went away;
  otherwise something that the call waited for was cancelled, or the node stops and ends its
  streams, and the caller is told so. A stream that takes messages is not cancelled by a stop: its
  reading ends with the reason, so that it may answer what it has read.

Must not know what any service does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from time import perf_counter
from typing import Any, Protocol, TypeAlias

import grpc

from service.api.errors import (
    Refusal,
    deadline_exceeded,
    interrupted,
    malformed,
    not_implemented,
    refusal_of,
)
from service.domain.errors import Reason, ResourceExhaustedError

UNKNOWN_METHOD = "_OTHER"
"""What a method is called in the records where there is none (OpenTelemetry's word for it)."""

MAX_CALLS_DEFAULT = 4_096

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs alone
_Context = grpc.aio.ServicerContext[Any, Any]
_Behaviour = Callable[[Any, _Context], Any]

_CODES: dict[object, grpc.StatusCode] = {
    key: code for code in grpc.StatusCode for key in (code, code.value[0])
}
_MALFORMED = object()
_UNSAFE_TO_REPEAT = ("Create", "Publish", "Send", "StartReplay")
"""Methods that may do harm when they are made again although they were done."""


class CallObserver(Protocol):
    """What wants to know of every call that ended."""

    def call_ended(self, method: str, code: grpc.StatusCode, duration_s: float) -> None:
        """`method` is `hookline.v1.EventService/GetEvent`; `duration_s` counts from its arrival."""


class Unobserved:
    """Lets calls end unnoticed."""

    def call_ended(self, method: str, code: grpc.StatusCode, duration_s: float) -> None:
        """Nothing."""


class CallGuard(grpc.aio.ServerInterceptor):
    """Wraps every method of the server; bounds how many calls run at once."""

    def __init__(
        self, observer: CallObserver | None = None, *, max_calls: int = MAX_CALLS_DEFAULT
    ) -> None:
        self._observer = observer or Unobserved()
        self._max_calls = max_calls
        self._running = 0
        self._streams: set[asyncio.Task[Any]] = set()
        self._readers: set[asyncio.Task[Any]] = set()
        """Who waits for the next message of a stream."""
        self._is_stopping = False
        self._wrapped: dict[str, _Handler] = {}
        self._unknown = self._wrap(
            UNKNOWN_METHOD, grpc.stream_stream_rpc_method_handler(_refuse_unknown)
        )

    def end_streams(self) -> None:
        """End every stream, and refuse new ones: none ends by itself, and a stop waits for all."""
        self._is_stopping = True
        for task in self._streams | self._readers:
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """The wrapped handler of a method, or one that refuses a method that there is not."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return self._unknown
            wrapped = self._wrapped[method] = self._wrap(method.removeprefix("/"), handler)
        return wrapped

    def _wrap(self, method: str, handler: _Handler) -> _Handler:
        behaviour, make = _parts_of(handler)
        if handler.request_streaming:
            behaviour = self._reading(behaviour)
        if handler.response_streaming:
            guarded = self._guard_stream(method, behaviour, ends_itself=handler.request_streaming)
        else:
            guarded = self._guard_unary(method, behaviour)
        return make(
            guarded,
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _guard_unary(self, method: str, behaviour: _Behaviour) -> _Behaviour:
        async def guarded(request: Any, context: _Context) -> Any:  # noqa: ANN401 (any message)
            started = perf_counter()
            self._running += 1
            try:
                self._admit(request, context)
                response = await behaviour(request, context)
            except BaseException as error:  # noqa: BLE001 (this is the place where all end)
                await self._end(method, started, context, error)
            else:
                self._observer.call_ended(method, grpc.StatusCode.OK, perf_counter() - started)
                return response
            finally:
                self._running -= 1

        return guarded

    def _guard_stream(self, method: str, behaviour: _Behaviour, *, ends_itself: bool) -> _Behaviour:
        async def guarded(request: Any, context: _Context) -> None:  # noqa: ANN401 (any message)
            started = perf_counter()
            self._running += 1
            try:
                self._admit(request, context)
                self._enter_stream(ends_itself=ends_itself)
                responses = behaviour(request, context)
                if hasattr(responses, "aclose"):
                    async with aclosing(responses):
                        async for response in responses:
                            await context.write(response)
                else:  # a coroutine that writes by itself, as grpc_health's
                    await responses
            except BaseException as error:  # noqa: BLE001 (this is the place where all end)
                await self._end(method, started, context, error)
            else:
                self._observer.call_ended(method, grpc.StatusCode.OK, perf_counter() - started)
            finally:
                self._running -= 1
                self._leave_stream()

        return guarded

    def _enter_stream(self, *, ends_itself: bool) -> None:
        if self._is_stopping:
            raise interrupted()
        if not ends_itself and (task := asyncio.current_task()) is not None:
            self._streams.add(task)

    def _leave_stream(self) -> None:
        if (task := asyncio.current_task()) is not None:
            self._streams.discard(task)

    def _reading(self, behaviour: _Behaviour) -> _Behaviour:
        def reading(requests: AsyncIterator[Any], context: _Context) -> Any:  # noqa: ANN401
            return behaviour(self._messages(requests), context)

        return reading

    async def _messages(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """What the client sends; raises for what is no message of the method, and at a stop."""
        while not self._is_stopping:
            try:
                request = await self._next(requests)
            except StopAsyncIteration:
                return
            if request is _MALFORMED:
                raise malformed()
            yield request
        raise interrupted()

    async def _next(self, requests: AsyncIterator[Any]) -> Any:  # noqa: ANN401 (any message)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines of a server run in tasks
        self._readers.add(task)
        try:
            return await anext(requests)
        except asyncio.CancelledError:
            if self._is_stopping and not task.uncancel():  # else the client is gone as well
                raise interrupted() from None
            raise
        finally:
            self._readers.discard(task)

    def _admit(self, request: object, context: _Context) -> None:
        if self._running > self._max_calls:
            raise ResourceExhaustedError(
                f"{self._max_calls:,} calls are running, which is as many as this node takes",
                Reason.OVERLOADED,
                retry_after_s=1.0,
                metadata={"limit": "HOOKLINE_MAX_CALLS", "maximum": str(self._max_calls)},
            )
        if context.time_remaining() == 0:  # never less; None without a deadline
            raise _DeadlineExceededError
        if request is _MALFORMED:
            raise malformed()

    async def _end(
        self, method: str, started: float, context: _Context, error: BaseException
    ) -> None:
        """Answer a call that failed; always raises."""
        if isinstance(error, grpc.aio.BaseError):
            # The servicer ended the call by itself, as grpc_health does; or the core could not
            # write, for the client is gone: it may find that out before it cancels the call.
            is_ended = isinstance(error, grpc.aio.AbortError)
            code = _code_of(context) if is_ended else grpc.StatusCode.CANCELLED
            self._observer.call_ended(method, code, perf_counter() - started)
            raise error
        if isinstance(error, asyncio.CancelledError) and _is_cancelled() and not self._is_stopping:
            code = grpc.StatusCode.CANCELLED
            self._observer.call_ended(method, code, perf_counter() - started)
            raise error
        refusal = _refusal_of(method, error)
        self._observer.call_ended(method, refusal.code, perf_counter() - started)
        await context.abort(*refusal)


class _DeadlineExceededError(Exception):
    """The caller no longer waits."""


def _refusal_of(method: str, error: BaseException) -> Refusal:
    if isinstance(error, _DeadlineExceededError):
        return deadline_exceeded()
    if isinstance(error, asyncio.CancelledError):
        error = interrupted()
    repeatable = not method.rpartition("/")[2].startswith(_UNSAFE_TO_REPEAT)
    return refusal_of(error, repeatable=repeatable)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _code_of(context: _Context) -> grpc.StatusCode:
    """The code that a servicer ended its call with; grpc.aio keeps it as it was given."""
    return _CODES.get(context.code(), grpc.StatusCode.UNKNOWN)


def _parts_of(handler: _Handler) -> tuple[_Behaviour, Callable[..., _Handler]]:
    """A handler's behaviour, and the function that makes a handler of such a behaviour."""
    behaviour: Any
    if handler.request_streaming and handler.response_streaming:
        behaviour, make = handler.stream_stream, grpc.stream_stream_rpc_method_handler
    elif handler.request_streaming:
        behaviour, make = handler.stream_unary, grpc.stream_unary_rpc_method_handler
    elif handler.response_streaming:
        behaviour, make = handler.unary_stream, grpc.unary_stream_rpc_method_handler
    else:
        behaviour, make = handler.unary_unary, grpc.unary_unary_rpc_method_handler
    return behaviour, make


def _tolerant(deserialise: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def tolerant(data: bytes) -> Any:  # noqa: ANN401 (any message)
        if deserialise is None:
            return data
        try:
            return deserialise(data)
        except Exception:  # noqa: BLE001 (DecodeError, and what else a broken message may cause)
            return _MALFORMED

    return tolerant


def _refuse_unknown(requests: object, context: object) -> AsyncIterator[bytes]:
    del requests, context
    raise not_implemented("this method")
