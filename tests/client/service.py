"""A real gRPC server with scripted responses to PublishEvents that records the requests."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from hookline.v1.event_service_pb2 import PublishEventsRequest, PublishEventsResponse, PublishResult
from hookline.v1.event_service_pb2_grpc import (
    EventServiceServicer,
    add_EventServiceServicer_to_server,
)

Context = grpc.aio.ServicerContext[PublishEventsRequest, Awaitable[PublishEventsResponse]]
Answer = Callable[[Context], Awaitable[None]]


class Events(EventServiceServicer):
    """Plays a script, one entry a call, then accepts; keeps what it was asked."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.rule: Callable[[PublishEventsRequest], Answer | None] | None = None
        """How to answer a request once the script is played; None: accept it."""
        self.is_open = asyncio.Event()
        """While it is not set, no call is answered."""
        self.is_open.set()
        self.requests: list[PublishEventsRequest] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.times: list[float] = []
        self.time_left_s: list[float] = []

    async def PublishEvents(
        self, request: PublishEventsRequest, context: Context
    ) -> PublishEventsResponse:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.times.append(time.monotonic())
        self.time_left_s.append(context.time_remaining())
        await self.is_open.wait()
        answer = self.script.pop(0) if self.script else self.rule and self.rule(request)
        if answer:
            await answer(context)
        names = [f"{request.tenant}/events/evt_{n}" for n in range(len(request.events))]
        return PublishEventsResponse(results=[PublishResult(name=name) for name in names])


def refuse(
    code: grpc.StatusCode, *details: Message, pushback: str | None = None, text: str = "no"
) -> Answer:
    """An answer with a status, the way that the service sends them."""

    async def answer(context: Context) -> None:
        status = status_pb2.Status(code=code.value[0], message=text)
        for detail in details:
            packed = Any()
            packed.Pack(detail)
            status.details.append(packed)
        trailers: list[tuple[str, str | bytes]] = [
            ("grpc-status-details-bin", status.SerializeToString())
        ]
        if pushback is not None:
            trailers.append(("grpc-retry-pushback-ms", pushback))
        await context.abort(code, text, tuple(trailers))

    return answer


async def hang(context: Context) -> None:
    """No answer, until the caller's deadline has passed."""
    del context
    await grpc.aio.insecure_channel("127.0.0.1:1").channel_ready()


def info(reason: str, **metadata: str) -> Message:
    message: Message = error_details_pb2.ErrorInfo(
        reason=reason, domain="hookline", metadata=metadata
    )
    return message


class Service:
    """A real server on a port of its own."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None, port: int = 0) -> None:
        self.events = Events()  # type: ignore[abstract]  # one of its methods is enough here
        self.server = grpc.aio.server()
        add_EventServiceServicer_to_server(self.events, self.server)
        self.port = (
            self.server.add_insecure_port(f"127.0.0.1:{port}")
            if credentials is None
            else self.server.add_secure_port(f"127.0.0.1:{port}", credentials)
        )

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"
