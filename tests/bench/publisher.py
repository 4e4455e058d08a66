"""The load generator, a separate process that sends the wire format of the generated stubs.

`python -m tests.bench.publisher '{…}'` publishes one `Load` and prints an `Acknowledged`, as JSON.
To keep its own cost low, requests are built in advance unless they contain their scheduled time,
and answers are not parsed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import grpc.aio
import uvloop

from hookline.client import HooklineClient
from hookline.v1 import event_pb2, event_service_pb2
from tests.bench.counters import Counters

Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

METHOD = "/hookline.v1.EventService/PublishEvents"
_POLL_S = 0.002
_CALL_TIMEOUT_S = 30.0
_OUTSTANDING_MAX = 10_000
_OVERLOADED = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_WAIT_BEHIND = 4_000
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # each channel a connection of its own
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)


class Mode(StrEnum):
    """The pace of calls."""

    CLOSED = "closed"
    """Closed loop: a number of calls in flight, throttled only if the receiver falls behind."""
    BATCHING = "batching"
    """The same, with the client's batching publisher instead of the stubs."""
    PACED = "paced"
    """Open loop: each call at its scheduled time, independently of earlier calls."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load. Calls rotate over servers and tenants, events over types."""

    servers: Sequence[str]
    counters: str
    tenants: Sequence[str]
    event_types: Sequence[str] = ("order.created",)
    publisher: int = 0
    """The slot of this publisher in the counters."""
    mode: Mode = Mode.CLOSED
    data_bytes: int = 500
    batch: int = 100
    fan_out: int = 1
    seconds: float = 10.0
    events: int | None = None
    """Closed loop: end after this number of acknowledged events, if that is before the time."""
    in_flight: int = 16
    """Closed loop: number of calls."""
    backlog: int = _WAIT_BEHIND
    """Closed loop: deliveries that the receiver may be behind; 0: no bound."""
    per_second: float = 0.0
    """Open loop: events per second."""
    is_stamped: bool = False
    """Each event contains its scheduled time, and the receiver reports its latency."""
    may_be_refused: bool = False
    """Count rejections for overload; otherwise they fail the run like any other error."""


@dataclass(frozen=True, kw_only=True)
class Acknowledged:
    """The result of a load."""

    events: int
    """Events acknowledged with OK."""
    refused: int
    """Events rejected for overload, or not sent because too many calls were in flight."""
    reset: int
    """The part of them rejected by gRPC itself, without retry advice."""
    begun_s: float
    """Time of the first call, monotonic."""
    ended_s: float
    """Time of the last answer, monotonic."""
    answers_us: Sequence[int]
    """Latencies of answers since the scheduled time."""


class Requests:
    """The serialized requests of a load, one per call."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._types = itertools.cycle(load.event_types)
        self._tenants = itertools.cycle(load.tenants)
        rounds = len(load.tenants) * len(load.event_types)
        self._made: Iterator[bytes] = itertools.cycle(
            [] if load.is_stamped else [self._make("{") for _ in range(rounds)]
        )

    def next(self, meant_ns: int) -> bytes:
        """Return the next request."""
        return self._make(f'{{"t":{meant_ns},') if self._load.is_stamped else next(self._made)

    def events(self, head: str = "{") -> list[event_pb2.Event]:
        """Return the events of a call, with data of the configured size."""
        data = head + '"filler":"' + "x" * max(0, self._load.data_bytes - len(head) - 12) + '"}'
        return [
            event_pb2.Event(type=next(self._types), json_data=data) for _ in range(self._load.batch)
        ]

    def _make(self, head: str) -> bytes:
        return event_service_pb2.PublishEventsRequest(
            tenant=next(self._tenants), events=self.events(head)
        ).SerializeToString()


class Publisher:
    """Makes the calls of a load, and counts acknowledged events."""

    def __init__(self, load: Load, counters: Counters, calls: Sequence[Call]) -> None:
        self._load = load
        self._counters = counters
        self._calls = itertools.cycle(calls)
        self._requests = Requests(load)
        self.events = 0
        self.refused = 0
        self.reset = 0
        self.answers_us: list[int] = []

    async def call(self, meant_ns: int = 0) -> None:
        """Make one call."""
        load = self._load
        try:
            await next(self._calls)(self._requests.next(meant_ns), timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if not load.may_be_refused or error.code() not in _OVERLOADED:
                raise
            self.refused += load.batch
            self.reset += 0 if error.trailing_metadata() else load.batch
        else:
            self._count()
            if load.is_stamped:
                self.answers_us.append((time.monotonic_ns() - meant_ns) // 1_000)

    def _count(self) -> None:
        self.events += self._load.batch
        self._counters.count_published(self._load.publisher, self._load.batch)

    async def run_batching(self) -> None:
        """Publish single events, a number of them in flight."""
        (event,) = self._requests.events()
        async with (
            HooklineClient(self._load.servers[0]) as client,
            client.batching(self._load.tenants[0]) as publisher,
        ):

            async def publish() -> None:
                await publisher.publish(event)
                self._count()

            await self.run_closed(publish)

    async def run_closed(self, call: Callable[[], Awaitable[None]] | None = None) -> None:
        """Keep a number of calls in flight until the time is over."""
        load, call = self._load, call or self.call
        end = time.monotonic() + load.seconds
        received_before = self._received()

        async def work() -> None:
            while time.monotonic() < end and (load.events is None or self.events < load.events):
                behind = self.events * load.fan_out - (self._received() - received_before)
                if load.backlog and behind > load.backlog:
                    await asyncio.sleep(_POLL_S)
                else:
                    await call()

        await asyncio.gather(*[work() for _ in range(load.in_flight)])

    async def run_paced(self) -> None:
        """Make each call at its scheduled time; return when all are answered."""
        load = self._load
        pending: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def begin(meant_ns: int) -> None:
            if len(pending) >= _OUTSTANDING_MAX and load.may_be_refused:
                self.refused += load.batch
                return
            task = loop.create_task(self.call(meant_ns))
            pending.add(task)
            task.add_done_callback(pending.discard)

        interval_s = load.batch / load.per_second
        count = int(load.seconds / interval_s)
        threading.Thread(
            target=_tick,
            args=(interval_s, count, lambda ns: loop.call_soon_threadsafe(begin, ns)),
            kwargs={"after": lambda: loop.call_soon_threadsafe(over.set)},
            daemon=True,
        ).start()
        await over.wait()
        await asyncio.gather(*pending)

    def _received(self) -> int:
        return self._counters.received()


def _tick(
    interval_s: float, count: int, each: Callable[[int], object], *, after: Callable[[], object]
) -> None:
    """Call `each` on schedule from a thread; an event loop's timers are a millisecond late."""
    begin_ns = time.monotonic_ns()
    for number in range(count):
        due_ns = begin_ns + int(number * interval_s * 1e9)
        wait_ns = due_ns - time.monotonic_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        each(due_ns)
    after()


async def run(load: Load, counters: Counters) -> Acknowledged:
    """Run a load."""
    channels = [grpc.aio.insecure_channel(server, _OPTIONS) for server in load.servers]
    try:
        await asyncio.gather(*[channel.channel_ready() for channel in channels])
        publisher = Publisher(load, counters, [channel.unary_unary(METHOD) for channel in channels])
        begun_s = time.monotonic()
        match load.mode:
            case Mode.CLOSED:
                await publisher.run_closed()
            case Mode.BATCHING:
                await publisher.run_batching()
            case Mode.PACED:
                await publisher.run_paced()
        return Acknowledged(
            events=publisher.events,
            refused=publisher.refused,
            reset=publisher.reset,
            begun_s=begun_s,
            ended_s=time.monotonic(),
            answers_us=publisher.answers_us,
        )
    finally:
        await asyncio.gather(*[channel.close() for channel in channels])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asked = Load(**given | {"mode": Mode(given["mode"])})
    with Counters(Path(asked.counters)) as shared:
        json.dump(asdict(uvloop.run(run(asked, shared))), sys.stdout)
