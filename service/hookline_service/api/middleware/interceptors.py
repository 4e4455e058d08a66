"""The outermost interceptor: every call passes here, and every exception ends here.

Theory of operation. grpc.aio answers an uncaught exception with its class and text, answers a
request that does not parse likewise, and never answers the client of a handler that raises
CancelledError. So each handler is wrapped, once, when its method is first called:

- the caller is authenticated first (`authentication.py`), then its scopes are checked
  (`scopes.py`), then admission (`admission.py`); only then is the request taken from the
  connection. So every method is registered as one that takes a stream: of other methods grpc.aio
  reads the whole request into memory before it calls the handler;
- what a call holds, from its request to its answer, is released once gRPC is done with it: the
  client has taken the answer, or the connection has ended (`unread_answers.py`);
- the handler runs inside `calling(caller)`; a privileged read is recorded in the audit log
  (`audit_policy.py`) before it is answered;
- an exception becomes a `Refusal` (`errors.py`);
- a CancelledError passes only if the call's own task was cancelled, as when the client disconnects.
  Otherwise something that the call waited for was cancelled, or the server has ended a stream
  (`streams.py`), and the client gets the reason.

What differs between methods is read from the registry (`methods.py`). Independent of what any
service does.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias, cast

import grpc

from hookline_service.api.middleware.admission import Admission
from hookline_service.api.middleware.audit_policy import AuditLog, Reads
from hookline_service.api.middleware.authentication import ANONYMOUS, Identities, Metadata
from hookline_service.api.middleware.call_observer import UNKNOWN_METHOD, CallObserver, Unobserved
from hookline_service.api.middleware.errors import (
    Refusal,
    deadline_exceeded,
    interrupted,
    malformed,
    not_implemented,
    refusal_of,
)
from hookline_service.api.middleware.message_fields import MessageReader
from hookline_service.api.middleware.methods import METHODS, Effect, Method
from hookline_service.api.middleware.scopes import AUTHENTICATED
from hookline_service.api.middleware.streams import Stream, Streams
from hookline_service.api.middleware.unread_answers import UnreadAnswer, UnreadAnswers
from hookline_service.domain.caller import Caller, calling
from hookline_service.telemetry.context import current_trace_id

MAX_CALLS_DEFAULT = 1_024
_CLOCK_TOLERANCE_S = 0.05
"""A client's deadline began before its call arrived, by as long as the call was on its way."""

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs alone
_Context = grpc.aio.ServicerContext[Any, Any]
_Behaviour = Callable[[Any, _Context], Any]

_CODES: dict[object, grpc.StatusCode] = {
    key: code for code in grpc.StatusCode for key in (code, code.value[0])
}
_UNAUTHENTICATED = Caller(principal=ANONYMOUS.principal, scopes=frozenset())
"""The caller of methods that are called without authentication."""


@dataclass(frozen=True, slots=True)
class _Route:
    """One wrapped method."""

    name: str
    method: Method | None
    """None: an unknown method."""
    behaviour: _Behaviour
    reader: MessageReader
    write: Callable[[Any], bytes]
    reads: Reads | None
    """The audit policy of a read that may be recorded."""
    is_open: bool
    """The method is called without authentication."""
    is_read: bool
    """The call changes nothing: its answer may be refused once it is found to be too large."""

    @classmethod
    def of(cls, name: str, method: Method | None, handler: _Handler) -> _Route:
        """Return the route of a handler."""
        behaviour: Any
        if handler.request_streaming:
            behaviour = handler.stream_stream or handler.stream_unary
        else:
            behaviour = handler.unary_stream or handler.unary_unary
        audit = None if method is None else method.audit
        return cls(
            name,
            method,
            behaviour,
            MessageReader.of(method, handler.request_deserializer),
            handler.response_serializer or bytes,
            reads=audit if isinstance(audit, Reads) else None,
            is_open=method is not None and method.access.is_open,
            is_read=method is not None and method.effect is Effect.READ,
        )


class _Call(UnreadAnswer):
    """An admitted call, and what it holds until gRPC is done with it."""

    __slots__ = ("caller", "client_stream", "group", "request_bytes")

    def __init__(self, route: _Route, caller: Caller, peer: str) -> None:
        is_identified = caller.principal != ANONYMOUS.principal
        # The holder of its bytes: the caller, or the connection where callers are anonymous.
        super().__init__(caller.principal if is_identified else peer, peer)
        self.caller = caller
        self.group = route.name if route.is_open else ""
        """The calls with which it is counted."""
        self.request_bytes = 0
        self.client_stream: Stream | None = None


class CallGuard(grpc.aio.ServerInterceptor):
    """Wraps every method of the server."""

    def __init__(
        self,
        identities: Identities,
        audit_log: AuditLog,
        admission: Admission,
        answers: UnreadAnswers,
        observer: CallObserver | None = None,
    ) -> None:
        self._identities = identities
        self._audit_log = audit_log
        self._admission = admission
        self._answers = answers
        self._observer = observer or Unobserved()
        self._streams = Streams()
        self._wrapped: dict[str, _Handler] = {}
        unknown: _Handler = grpc.stream_stream_rpc_method_handler(_refuse_unknown)
        self._unknown = self._wrap(UNKNOWN_METHOD, None, unknown)

    def end_streams(self) -> None:
        """End every stream and refuse new ones: a stop would wait for them for ever."""
        self._streams.end_all()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Return the wrapped handler of a method; one that refuses, if it is not registered."""
        path = handler_call_details.method
        wrapped = self._wrapped.get(path)
        if wrapped is None:
            name = path.removeprefix("/")
            method = METHODS.get(name)
            handler = await continuation(handler_call_details)
            if method is None or handler is None:
                return self._unknown
            wrapped = self._wrapped[path] = self._wrap(name, method, handler)
        return wrapped

    def _wrap(self, name: str, method: Method | None, handler: _Handler) -> _Handler:
        route = _Route.of(name, method, handler)
        make: Callable[..., _Handler]
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler
        else:
            make = grpc.stream_unary_rpc_method_handler
        if handler.request_streaming or handler.response_streaming:
            guarded = self._guard_stream(
                route,
                takes_messages=handler.request_streaming,
                answers_once=not handler.response_streaming,
            )
        else:
            guarded = self._guard_unary(route)
        return make(
            guarded,
            request_deserializer=None,  # decoded once its sender is authenticated
            response_serializer=None,  # encoded where its size is counted
        )

    def _guard_unary(self, route: _Route) -> _Behaviour:
        method, behaviour, write, reads = route.method, route.behaviour, route.write, route.reads
        is_list = method is not None and method.is_list

        async def guarded(_requests: Any, context: _Context) -> Any:  # noqa: ANN401 (any message)
            started = perf_counter()
            self._observer.call_began(route.name, context)
            try:
                call = await self._admit(route, context, _metadata_of(context), context.peer())
                message = await self._message(route, call, context)
                with calling(call.caller):
                    if is_list:
                        async with self._admission.list_turn(route.reader, call.caller, message):
                            response = await behaviour(message, context)
                    else:
                        response = await behaviour(message, context)
                    if reads is not None and method is not None:
                        named = method.resource_in(message)
                        await reads.record(self._audit_log, message, named, response)
                answer = write(response)
                self._answers.begin(call, len(answer), may_refuse=route.is_read)
            except BaseException as error:  # noqa: BLE001 (every exception of a call ends here)
                failure = error
            else:
                self._observer.call_ended(route.name, grpc.StatusCode.OK, perf_counter() - started)
                return answer
            message, response, answer = None, None, b""
            failure = await self._end(route, started, context, failure)
            del context, _requests
            raise failure

        return guarded

    def _guard_stream(
        self, route: _Route, *, takes_messages: bool, answers_once: bool
    ) -> _Behaviour:
        method, reads = route.method, route.reads

        async def guarded(requests: Any, context: _Context) -> Any:  # noqa: ANN401 (any message)
            started = perf_counter()
            self._observer.call_began(route.name, context)
            stream, answer = Stream(takes_messages=takes_messages), None
            argument: Any = None
            metadata, peer = _metadata_of(context), context.peer()
            recheck = partial(self._identify, route, context, metadata, peer)
            checking: asyncio.Task[None] | None = None
            try:
                call = await self._admit(route, context, metadata, peer)
                self._streams.enter(stream)
                checking = asyncio.create_task(self._streams.recheck_repeatedly(stream, recheck))
                if takes_messages:
                    self._admission.enter_client_stream(call.holder, stream)
                    call.client_stream = stream
                    admit = partial(self._admission.decode, route.reader, call.caller)
                    argument = stream.messages(requests, admit, recheck)
                else:
                    argument = await self._message(route, call, context)
                with calling(call.caller):
                    # Recorded when it begins: a stream may never end.
                    if reads is not None and method is not None and not takes_messages:
                        named = method.resource_in(argument)
                        await reads.record(self._audit_log, argument, named)
                    responses = route.behaviour(argument, context)
                    if answers_once:
                        answer = route.write(await responses)
                    else:
                        await self._write_all(route, call, responses, context)
            except BaseException as error:  # noqa: BLE001 (every exception of a call ends here)
                failure = error
            else:
                self._observer.call_ended(route.name, grpc.StatusCode.OK, perf_counter() - started)
                return answer
            finally:
                self._streams.leave(stream)
                if checking is not None:
                    checking.cancel()
            argument = responses = None
            failure = await self._end(route, started, context, failure, stream)
            del context, requests, recheck, metadata
            raise failure

        return guarded

    async def _write_all(
        self, route: _Route, call: _Call, responses: AsyncGenerator[Any, None], context: _Context
    ) -> None:
        """Write what a behaviour yields, each message once the client has taken the last one."""
        async with aclosing(responses):
            async for response in responses:
                answer = route.write(response)
                self._answers.begin(call, len(answer))
                try:
                    await context.write(answer)
                finally:
                    self._answers.end(call)

    async def _identify(
        self, route: _Route, context: _Context, metadata: Metadata, peer: str
    ) -> Caller:
        """Return the caller. Raise where it is not authenticated or lacks the scope."""
        if route.is_open:
            return _UNAUTHENTICATED
        caller = await self._identities.authenticate(metadata, context.auth_context, peer)
        access = AUTHENTICATED if route.method is None else route.method.access
        access.check(caller)
        return caller.in_call(f"/{route.name}", peer, current_trace_id())

    async def _admit(
        self, route: _Route, context: _Context, metadata: Metadata, peer: str
    ) -> _Call:
        self._admission.check_metadata(metadata)
        caller = await self._identify(route, context, metadata, peer)
        call = _Call(route, caller, peer)
        self._answers.check_capacity(call.holder)
        self._admission.enter(call.group)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines of a server run in tasks
        # Not the context's own callback: it would hold the call in a cycle of references.
        task.add_done_callback(partial(self._release, call))
        return call

    async def _message(self, route: _Route, call: _Call, context: _Context) -> Any:  # noqa: ANN401 (any message)
        """Return the one message of an admitted call, if its client still waits for the answer."""
        request = await self._admission.request(call.holder, context.read, is_open=route.is_open)
        if context.time_remaining() == 0:  # never less; None without a deadline
            raise _DeadlineExceededError
        if request is grpc.aio.EOF:
            raise malformed()
        data = cast("bytes", request)
        message = self._admission.decode(route.reader, call.caller, data)
        self._admission.hold(call.holder, len(data))
        call.request_bytes = len(data)
        return message

    def _release(self, call: _Call, _: object) -> None:
        """Release what a call held: gRPC is done with it."""
        self._admission.leave(call.group)
        self._answers.end(call)
        if call.request_bytes:
            self._admission.release(call.holder, call.request_bytes)
        if call.client_stream is not None:
            self._admission.leave_client_stream(call.client_stream)

    async def _end(
        self,
        route: _Route,
        started: float,
        context: _Context,
        error: BaseException,
        stream: Stream | None = None,
    ) -> BaseException:
        """Answer a call that failed; return the exception to raise.

        A raised exception stays with the call in a cycle of references until the garbage collector
        finds it: so it must refer to nothing that the call held.
        """
        if isinstance(error, grpc.aio.BaseError):
            # The servicer ended the call itself, or the core could not write because the client
            # has disconnected: it may find that out before it cancels the call.
            is_ended = isinstance(error, grpc.aio.AbortError)
            code = _code_of(context) if is_ended else _code_of_disconnect(context)
            self._observer.call_ended(route.name, code, perf_counter() - started)
            return _without_references(error)
        if isinstance(error, asyncio.CancelledError):
            reason = None if stream is None else stream.reason
            if reason is None and _is_cancelled() and not self._streams.is_stopping:
                code = _code_of_disconnect(context)
                self._observer.call_ended(route.name, code, perf_counter() - started)
                return _without_references(error)
            error = reason or interrupted()
        refusal = _refusal_of(route, error)
        self._observer.call_ended(route.name, refusal.code, perf_counter() - started)
        _without_references(error)
        try:
            await context.abort(*refusal)
        except BaseException as aborted:  # noqa: BLE001 - AbortError, or the client disconnected
            return _without_references(aborted)
        raise AssertionError("abort always raises")


def _without_references(error: BaseException) -> BaseException:
    """Return the error without its cause and traceback, whose frames are cleared."""
    traceback.clear_frames(error.__traceback__)
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def _metadata_of(context: _Context) -> Metadata:
    """Return the call's metadata; grpc.aio builds it anew at each call of this."""
    return cast("Metadata", context.invocation_metadata())


class _DeadlineExceededError(Exception):
    """The client no longer waits."""


def _refusal_of(route: _Route, error: BaseException) -> Refusal:
    if isinstance(error, _DeadlineExceededError):
        return deadline_exceeded()
    method = route.method
    repeatable = method is None or method.effect is not Effect.UNSAFE_TO_REPEAT
    return refusal_of(error, repeatable=repeatable)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _code_of_disconnect(context: _Context) -> grpc.StatusCode:
    """Return why a client ended its call: its deadline, within the tolerance, or a cancel."""
    left_s = cast("float | None", context.time_remaining())  # None without a deadline
    is_late = left_s is not None and left_s < _CLOCK_TOLERANCE_S
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED


def _code_of(context: _Context) -> grpc.StatusCode:
    """Return the code that a servicer ended its call with; grpc.aio keeps it as it was given."""
    return _CODES.get(context.code(), grpc.StatusCode.UNKNOWN)


def _refuse_unknown(requests: object, context: object) -> AsyncIterator[bytes]:
    del requests, context
    raise not_implemented("this method")
