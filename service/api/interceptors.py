"""The outermost interceptor: every call passes here, and every exception ends here.

Theory of operation. grpc.aio answers an uncaught exception with its class and text, answers a
request that does not parse likewise, and leaves the client of a handler that raises CancelledError
waiting for ever. So each handler is wrapped, once, when its method is first called:

- who calls is asked first (`authentication.py`), then whether he may (`scopes.py`), then whether
  there is room (`admission.py`); only then is his request taken from the connection. So to gRPC
  every method takes a stream: of others it holds the whole request in memory before it asks us;
- the handler runs inside `calling(caller)`, and what it read is entered in the audit log where that
  is privileged (`audited.py`), before it is answered;
- an exception becomes a `Refusal` (`errors.py`);
- a CancelledError passes only if the call's own task was cancelled, as when the client went away;
  otherwise something that the call waited for was cancelled, or we have ended a stream
  (`streams.py`), and the caller is told so.

Must not know what any service does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol, TypeAlias, cast

import grpc

from service.api.admission import Admission
from service.api.audited import AUDIT, Journal, Reads
from service.api.authentication import Identities, Metadata
from service.api.errors import (
    Refusal,
    deadline_exceeded,
    interrupted,
    malformed,
    not_implemented,
    refusal_of,
)
from service.api.scopes import KNOWN, RULES, Rule
from service.api.streams import Stream, Streams
from service.domain.caller import Caller, calling
from service.domain.errors import PermissionDeniedError, Reason, UnavailableError
from service.telemetry.current import current_trace_id

UNKNOWN_METHOD = "_OTHER"
"""What a method is called in the records where there is none (OpenTelemetry's word for it)."""

MAX_CALLS_DEFAULT = 4_096
STRANGERS_READ_MAX = 16
"""Strangers' requests on their way at once. A probe's comes with its call: it makes no room."""
STRANGERS_READ_S = 2.0
"""How long each may take."""
_CLOCKS_DIFFER_S = 0.05
"""A client's deadline began before its call was here, by as long as that took."""

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs alone
_Context = grpc.aio.ServicerContext[Any, Any]
_Behaviour = Callable[[Any, _Context], Any]
_Read = Callable[[bytes], Any]

_CODES: dict[object, grpc.StatusCode] = {
    key: code for code in grpc.StatusCode for key in (code, code.value[0])
}
_UNSAFE_TO_REPEAT = ("Create", "Publish", "Send", "StartReplay")
"""Methods that may do harm when they are made again although they were done."""
_STRANGER = Caller(principal="anonymous", scopes=frozenset())
"""Who calls what is open to everybody."""


class CallObserver(Protocol):
    """What wants to know of every call."""

    def call_began(self, method: str, context: _Context) -> None:
        """In the call's own task, before anything is done for it."""

    def call_ended(self, method: str, code: grpc.StatusCode, duration_s: float) -> None:
        """`method` is `hookline.v1.EventService/GetEvent`; `duration_s` counts from its arrival."""


class Unobserved:
    """Lets calls pass unnoticed."""

    def call_began(self, method: str, context: _Context) -> None:
        """Nothing."""

    def call_ended(self, method: str, code: grpc.StatusCode, duration_s: float) -> None:
        """Nothing."""


class CallGuard(grpc.aio.ServerInterceptor):
    """Wraps every method of the server."""

    def __init__(
        self,
        identities: Identities,
        journal: Journal,
        admission: Admission,
        observer: CallObserver | None = None,
    ) -> None:
        self._identities = identities
        self._journal = journal
        self._admission = admission
        self._observer = observer or Unobserved()
        self._running = Counter[str]()
        """Calls that run; of what is open to strangers each method by itself. They crowd out nobody
        who is known, nor do their watches, which never end, crowd out a probe."""
        self._strangers_read: dict[asyncio.Timeout, None] = {}
        """Until when each request of a stranger is awaited, the oldest first."""
        self._streams = Streams()
        self._wrapped: dict[str, _Handler] = {}
        unknown: _Handler = grpc.stream_stream_rpc_method_handler(_refuse_unknown)
        self._unknown = self._wrap(UNKNOWN_METHOD, unknown, KNOWN)

    def end_streams(self) -> None:
        """End every stream, and refuse new ones: none ends by itself, and a stop waits for all."""
        self._streams.end_all()

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
            name = method.removeprefix("/")
            rule = RULES.get(name) if name in AUDIT else None
            wrapped = self._wrapped[method] = self._wrap(name, handler, rule)
        return wrapped

    def _wrap(self, method: str, handler: _Handler, rule: Rule | None) -> _Handler:
        behaviour, make = _parts_of(handler)
        guard = self._guard_unary
        if handler.request_streaming or handler.response_streaming:
            guard = partial(
                self._guard_stream,
                takes_messages=handler.request_streaming,
                answers_once=not handler.response_streaming,
            )
        return make(
            guard(method, behaviour, rule, _reader_of(handler.request_deserializer)),
            request_deserializer=None,  # it is read once its sender is known
            response_serializer=handler.response_serializer,
        )

    def _guard_unary(
        self, method: str, behaviour: _Behaviour, rule: Rule | None, read: _Read
    ) -> _Behaviour:
        reads = _reads_of(method)
        is_list = method.startswith("hookline.") and "/List" in method

        async def guarded(_requests: Any, context: _Context) -> Any:  # noqa: ANN401 (any message)
            started = perf_counter()
            self._observer.call_began(method, context)
            caller: Caller | None = None
            try:
                caller = await self._admit(method, rule, context, _metadata_of(context))
                request = await self._request(caller, context)
                message = self._admission.read(read, caller, request)
                turn = self._admission.list_turn(caller, message) if is_list else nullcontext()
                with calling(caller):
                    async with turn:
                        response = await behaviour(message, context)
                    if reads is not None:
                        await reads.enter(self._journal, message, response)
            except BaseException as error:  # noqa: BLE001 (this is the place where all end)
                await self._end(method, started, context, error)
            else:
                self._observer.call_ended(method, grpc.StatusCode.OK, perf_counter() - started)
                return response
            finally:
                self._leave(method, caller)

        return guarded

    def _guard_stream(
        self,
        method: str,
        behaviour: _Behaviour,
        rule: Rule | None,
        read: _Read,
        *,
        takes_messages: bool,
        answers_once: bool,
    ) -> _Behaviour:
        reads = _reads_of(method)

        async def guarded(requests: Any, context: _Context) -> Any:  # noqa: ANN401 (any message)
            started = perf_counter()
            self._observer.call_began(method, context)
            caller: Caller | None = None
            stream, response = Stream(takes_messages=takes_messages), None
            metadata = _metadata_of(context)
            recheck = partial(self._identify, method, rule, context, metadata)
            following: asyncio.Task[None] | None = None
            try:
                caller = await self._admit(method, rule, context, metadata)
                self._streams.enter(stream)
                following = asyncio.create_task(self._streams.follow(stream, recheck))
                admit = partial(self._admission.read, read, caller)
                if takes_messages:
                    argument = stream.messages(requests, admit, recheck)
                else:
                    argument = admit(await self._request(caller, context))
                with calling(caller):
                    if reads is not None and not takes_messages:  # it may never end
                        await reads.enter(self._journal, argument)
                    response = await _answered(behaviour(argument, context), context)
            except BaseException as error:  # noqa: BLE001 (this is the place where all end)
                await self._end(method, started, context, error, stream)
            else:
                self._observer.call_ended(method, grpc.StatusCode.OK, perf_counter() - started)
                return response if answers_once else None
            finally:
                self._leave(method, caller)
                self._streams.leave(stream)
                if following is not None:
                    following.cancel()

        return guarded

    async def _identify(
        self, method: str, rule: Rule | None, context: _Context, metadata: Metadata
    ) -> Caller:
        """Who calls; raises where that is not known, or he may not."""
        if rule is not None and rule.is_open:
            return _STRANGER
        peer = context.peer()
        known = await self._identities.authenticate(metadata, context.auth_context(), peer)
        if rule is None:
            raise PermissionDeniedError("nobody may make this call", Reason.PERMISSION_DENIED)
        rule.check(known)
        return replace(known, method=f"/{method}", remote_address=peer, trace_id=current_trace_id())

    async def _admit(
        self, method: str, rule: Rule | None, context: _Context, metadata: Metadata
    ) -> Caller:
        self._admission.check_metadata(metadata)
        caller = await self._identify(method, rule, context, metadata)
        crowd = _crowd_of(caller, method)
        self._admission.check_running(self._running[crowd] + 1)
        self._running[crowd] += 1
        return caller

    async def _request(self, caller: Caller, context: _Context) -> bytes:
        """The one message of a call that was let in, if its caller still waits for the answer."""
        if caller is not _STRANGER:
            request = await context.read()
        else:
            request = await self._strangers_request(context)
        if context.time_remaining() == 0:  # never less; None without a deadline
            raise _DeadlineExceededError
        if request is grpc.aio.EOF:
            raise malformed()
        return cast("bytes", request)

    async def _strangers_request(self, context: _Context) -> Any:  # noqa: ANN401 (bytes, or EOF)
        reading = self._strangers_read
        try:
            async with asyncio.timeout(STRANGERS_READ_S) as patience:
                if len(reading) == STRANGERS_READ_MAX:
                    del reading[oldest := next(iter(reading))]
                    if not oldest.expired():
                        oldest.reschedule(asyncio.get_running_loop().time())
                reading[patience] = None
                return await context.read()
        except TimeoutError:
            raise UnavailableError(
                "a request that needs no key is awaited for a moment only, and came not in time",
                Reason.OVERLOADED,
                retry_after_s=1.0,
            ) from None
        finally:
            reading.pop(patience, None)

    def _leave(self, method: str, caller: Caller | None) -> None:
        """A call has ended; None: it was not let in."""
        if caller is not None:
            self._running[_crowd_of(caller, method)] -= 1

    async def _end(
        self,
        method: str,
        started: float,
        context: _Context,
        error: BaseException,
        stream: Stream | None = None,
    ) -> None:
        """Answer a call that failed; always raises."""
        if isinstance(error, grpc.aio.BaseError):
            # The servicer ended the call by itself, as grpc_health does; or the core could not
            # write, for the client is gone: it may find that out before it cancels the call.
            is_ended = isinstance(error, grpc.aio.AbortError)
            code = _code_of(context) if is_ended else _code_of_going(context)
            self._observer.call_ended(method, code, perf_counter() - started)
            raise error
        if isinstance(error, asyncio.CancelledError):
            reason = None if stream is None else stream.reason
            if reason is None and _is_cancelled() and not self._streams.is_stopping:
                code = _code_of_going(context)
                self._observer.call_ended(method, code, perf_counter() - started)
                raise error
            error = reason or interrupted()
        refusal = _refusal_of(method, error)
        self._observer.call_ended(method, refusal.code, perf_counter() - started)
        await context.abort(*refusal)


def _crowd_of(caller: Caller, method: str) -> str:
    """Whom a call is counted with."""
    return method if caller is _STRANGER else ""


def _metadata_of(context: _Context) -> Metadata:
    """What a call brought along; grpc.aio makes it anew each time it is asked."""
    return cast("Metadata", context.invocation_metadata())


def _reads_of(method: str) -> Reads | None:
    word = AUDIT.get(method)
    return word if isinstance(word, Reads) else None


class _DeadlineExceededError(Exception):
    """The caller no longer waits."""


def _refusal_of(method: str, error: BaseException) -> Refusal:
    if isinstance(error, _DeadlineExceededError):
        return deadline_exceeded()
    repeatable = not method.rpartition("/")[2].startswith(_UNSAFE_TO_REPEAT)
    return refusal_of(error, repeatable=repeatable)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _code_of_going(context: _Context) -> grpc.StatusCode:
    """Why a client went: its time was up, by its own clock a moment before ours, or it chose to."""
    left_s = cast("float | None", context.time_remaining())  # None without a deadline
    is_late = left_s is not None and left_s < _CLOCKS_DIFFER_S
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED


def _code_of(context: _Context) -> grpc.StatusCode:
    """The code that a servicer ended its call with; grpc.aio keeps it as it was given."""
    return _CODES.get(context.code(), grpc.StatusCode.UNKNOWN)


def _parts_of(handler: _Handler) -> tuple[_Behaviour, Callable[..., _Handler]]:
    """A handler's behaviour, and the function that makes a handler of one that takes a stream."""
    behaviour: Any
    if handler.request_streaming:
        behaviour = handler.stream_stream or handler.stream_unary
    else:
        behaviour = handler.unary_stream or handler.unary_unary
    if handler.response_streaming:
        return behaviour, grpc.stream_stream_rpc_method_handler
    return behaviour, grpc.stream_unary_rpc_method_handler


def _reader_of(deserialise: _Read | None) -> _Read:
    def read(data: bytes) -> Any:  # noqa: ANN401 (any message)
        if deserialise is None:
            return data
        try:
            return deserialise(data)
        except Exception:  # noqa: BLE001 (DecodeError, and what else a broken message may cause)
            raise malformed() from None

    return read


async def _answered(responses: Any, context: _Context) -> Any:  # noqa: ANN401 (any message)
    """Write what a behaviour yields, or wait for one that answers, or writes, by itself."""
    if not hasattr(responses, "aclose"):
        return await responses
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)
    return None


def _refuse_unknown(requests: object, context: object) -> AsyncIterator[bytes]:
    del requests, context
    raise not_implemented("this method")
