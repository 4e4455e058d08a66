"""The outermost interceptor: every call passes here, and every exception ends here.

Theory of operation. grpc.aio answers an uncaught exception with its class and text, answers a
request that does not parse likewise, and leaves the client of a handler that raises CancelledError
waiting for ever. So each handler is wrapped, once, when its method is first called:

- who calls is asked first (`authentication.py`), then whether he may (`scopes.py`), then whether
  there is room (`admission.py`); only then is his request taken from the connection. So to gRPC
  every method takes a stream: of others it holds the whole request in memory before it asks us;
- what a call holds, from its request to its answer, is given back once gRPC is done with it: the
  answer was taken by its reader, or the connection has ended (`unread_answers.py`);
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
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol, TypeAlias, cast

import grpc

from hookline_service.api.middleware.admission import Admission
from hookline_service.api.middleware.audit_policy import AUDIT, AuditLog, Reads
from hookline_service.api.middleware.authentication import ANONYMOUS, Identities, Metadata
from hookline_service.api.middleware.errors import (
    Refusal,
    deadline_exceeded,
    interrupted,
    malformed,
    not_implemented,
    refusal_of,
)
from hookline_service.api.middleware.message_fields import MessageReader
from hookline_service.api.middleware.scopes import KNOWN, RULES, Rule
from hookline_service.api.middleware.streams import Stream, Streams
from hookline_service.api.middleware.unread_answers import UnreadAnswers
from hookline_service.domain.caller import Caller, calling
from hookline_service.domain.errors import PermissionDeniedError, Reason
from hookline_service.telemetry.current import current_trace_id

UNKNOWN_METHOD = "_OTHER"
"""What a method is called in the records where there is none (OpenTelemetry's word for it)."""

MAX_CALLS_DEFAULT = 1_024
_CLOCKS_DIFFER_S = 0.05
"""A client's deadline began before its call was here, by as long as that took."""

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in its stubs alone
_Context = grpc.aio.ServicerContext[Any, Any]
_Behaviour = Callable[[Any, _Context], Any]
_Write = Callable[[Any], bytes]

_CODES: dict[object, grpc.StatusCode] = {
    key: code for code in grpc.StatusCode for key in (code, code.value[0])
}
_UNSAFE_TO_REPEAT = ("Create", "Publish", "Send", "StartReplay")
"""Methods that may do harm when they are made again although they were done."""
_READS = ("Get", "List", "Explain", "Check", "Watch")
"""Methods that change nothing: their answers may be refused once they are known to be too large."""
_ANONYMOUS = Caller(principal=ANONYMOUS.principal, scopes=frozenset())
"""Who calls what is open to everybody."""


@dataclass(eq=False, slots=True)
class _Call:
    """A call that was let in, and what it holds until gRPC is done with it."""

    caller: Caller
    crowd: str
    """With what calls it is counted."""
    holder: str
    """Who holds its bytes: its caller, or its connection where callers are not told apart."""
    request_bytes: int = 0
    answer_bytes: int = 0
    client_stream: Stream | None = None


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
        journal: AuditLog,
        admission: Admission,
        answers: UnreadAnswers,
        observer: CallObserver | None = None,
    ) -> None:
        self._identities = identities
        self._journal = journal
        self._admission = admission
        self._answers = answers
        self._observer = observer or Unobserved()
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
            guard(
                method,
                behaviour,
                rule,
                MessageReader.of(method, handler.request_deserializer),
                handler.response_serializer or bytes,
            ),
            request_deserializer=None,  # it is read once its sender is known
            response_serializer=None,  # it is written where its size is counted
        )

    def _guard_unary(
        self,
        method: str,
        behaviour: _Behaviour,
        rule: Rule | None,
        read: MessageReader,
        write: _Write,
    ) -> _Behaviour:
        reads = _reads_of(method)
        is_list = method.startswith("hookline.") and "/List" in method
        changes_nothing = _name_of(method).startswith(_READS)

        async def guarded(_requests: Any, context: _Context) -> Any:  # noqa: ANN401 (any message)
            started = perf_counter()
            self._observer.call_began(method, context)
            try:
                call = await self._admit(method, rule, context, _metadata_of(context))
                message = await self._message(call, read, context)
                caller = call.caller
                turn = self._admission.list_turn(caller, message) if is_list else nullcontext()
                with calling(caller):
                    async with turn:
                        response = await behaviour(message, context)
                    if reads is not None:
                        await reads.enter(self._journal, message, response)
                answer = write(response)
                call.answer_bytes = self._answers.begin(
                    call.holder, call, context.peer(), len(answer), may_refuse=changes_nothing
                )
            except BaseException as error:  # noqa: BLE001 (this is the place where all end)
                failure = error
            else:
                self._observer.call_ended(method, grpc.StatusCode.OK, perf_counter() - started)
                return answer
            message, response, answer = None, None, b""
            failure = await self._end(method, started, context, failure)
            del context, _requests
            raise failure

        return guarded

    def _guard_stream(
        self,
        method: str,
        behaviour: _Behaviour,
        rule: Rule | None,
        read: MessageReader,
        write: _Write,
        *,
        takes_messages: bool,
        answers_once: bool,
    ) -> _Behaviour:
        reads = _reads_of(method)

        async def guarded(requests: Any, context: _Context) -> Any:  # noqa: ANN401 (any message)
            started = perf_counter()
            self._observer.call_began(method, context)
            stream, answer = Stream(takes_messages=takes_messages), None
            argument: Any = None
            metadata = _metadata_of(context)
            recheck = partial(self._identify, method, rule, context, metadata)
            following: asyncio.Task[None] | None = None
            try:
                call = await self._admit(method, rule, context, metadata)
                self._streams.enter(stream)
                following = asyncio.create_task(self._streams.follow(stream, recheck))
                if takes_messages:
                    self._admission.enter_client_stream(call.holder, stream)
                    call.client_stream = stream
                    admit = partial(self._admission.read, read, call.caller)
                    argument = stream.messages(requests, admit, recheck)
                else:
                    argument = await self._message(call, read, context)
                with calling(call.caller):
                    if reads is not None and not takes_messages:  # it may never end
                        await reads.enter(self._journal, argument)
                    responses = behaviour(argument, context)
                    if answers_once:
                        answer = write(await responses)
                    else:
                        await self._write_all(call, responses, write, context)
            except BaseException as error:  # noqa: BLE001 (this is the place where all end)
                failure = error
            else:
                self._observer.call_ended(method, grpc.StatusCode.OK, perf_counter() - started)
                return answer
            finally:
                self._streams.leave(stream)
                if following is not None:
                    following.cancel()
            argument = responses = None
            failure = await self._end(method, started, context, failure, stream)
            del context, requests, recheck, metadata
            raise failure

        return guarded

    async def _write_all(
        self, call: _Call, responses: AsyncGenerator[Any, None], write: _Write, context: _Context
    ) -> None:
        """Write what a behaviour yields, each once the one before it was taken."""
        async with aclosing(responses):
            async for response in responses:
                answer = write(response)
                counted = self._answers.begin(call.holder, call, context.peer(), len(answer))
                try:
                    await context.write(answer)
                finally:
                    self._answers.end(call.holder, call, counted)

    async def _identify(
        self, method: str, rule: Rule | None, context: _Context, metadata: Metadata
    ) -> Caller:
        """Who calls; raises where that is not known, or he may not."""
        if rule is not None and rule.is_open:
            return _ANONYMOUS
        peer = context.peer()
        known = await self._identities.authenticate(metadata, context.auth_context(), peer)
        if rule is None:
            raise PermissionDeniedError("nobody may make this call", Reason.PERMISSION_DENIED)
        rule.check(known)
        return replace(known, method=f"/{method}", remote_address=peer, trace_id=current_trace_id())

    async def _admit(
        self, method: str, rule: Rule | None, context: _Context, metadata: Metadata
    ) -> _Call:
        self._admission.check_metadata(metadata)
        caller = await self._identify(method, rule, context, metadata)
        is_told_apart = caller.principal != ANONYMOUS.principal
        holder = caller.principal if is_told_apart else context.peer()
        call = _Call(caller, method if caller is _ANONYMOUS else "", holder)
        self._answers.check_room(holder)
        self._admission.enter(call.crowd)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines of a server run in tasks
        # Not the context's own callback: it would hold the call in a cycle of references.
        task.add_done_callback(lambda _: self._leave(call))
        return call

    async def _message(self, call: _Call, read: MessageReader, context: _Context) -> Any:  # noqa: ANN401 (any message)
        """The one message of a call that was let in, if its caller still waits for the answer."""
        is_open = call.caller is _ANONYMOUS
        request = await self._admission.request(call.holder, context.read, is_open=is_open)
        if context.time_remaining() == 0:  # never less; None without a deadline
            raise _DeadlineExceededError
        if request is grpc.aio.EOF:
            raise malformed()
        data = cast("bytes", request)
        message = self._admission.read(read, call.caller, data)
        self._admission.hold(call.holder, len(data))
        call.request_bytes = len(data)
        return message

    def _leave(self, call: _Call) -> None:
        """Give back what a call held: gRPC is done with it."""
        self._admission.leave(call.crowd)
        self._answers.end(call.holder, call, call.answer_bytes)
        if call.request_bytes:
            self._admission.release(call.holder, call.request_bytes)
        if call.client_stream is not None:
            self._admission.leave_client_stream(call.client_stream)

    async def _end(
        self,
        method: str,
        started: float,
        context: _Context,
        error: BaseException,
        stream: Stream | None = None,
    ) -> BaseException:
        """Answer a call that failed; returns what is to be raised.

        What is raised stays with the call in a cycle of references, which the garbage collector
        finds late: so it refers to nothing that the call held.
        """
        if isinstance(error, grpc.aio.BaseError):
            # The servicer ended the call by itself; or the core could not
            # write, for the client is gone: it may find that out before it cancels the call.
            is_ended = isinstance(error, grpc.aio.AbortError)
            code = _code_of(context) if is_ended else _code_of_going(context)
            self._observer.call_ended(method, code, perf_counter() - started)
            return _forgetful(error)
        if isinstance(error, asyncio.CancelledError):
            reason = None if stream is None else stream.reason
            if reason is None and _is_cancelled() and not self._streams.is_stopping:
                code = _code_of_going(context)
                self._observer.call_ended(method, code, perf_counter() - started)
                return _forgetful(error)
            error = reason or interrupted()
        refusal = _refusal_of(method, error)
        self._observer.call_ended(method, refusal.code, perf_counter() - started)
        _forgetful(error)
        try:
            await context.abort(*refusal)
        except BaseException as aborted:  # noqa: BLE001 - an AbortError, or the client is gone
            return _forgetful(aborted)
        raise AssertionError("abort always raises")


def _forgetful(error: BaseException) -> BaseException:
    """The error without what was raised before it and where, and with those frames emptied."""
    traceback.clear_frames(error.__traceback__)
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def _name_of(method: str) -> str:
    return method.rpartition("/")[2]


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
    repeatable = not _name_of(method).startswith(_UNSAFE_TO_REPEAT)
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


def _refuse_unknown(requests: object, context: object) -> AsyncIterator[bytes]:
    del requests, context
    raise not_implemented("this method")
