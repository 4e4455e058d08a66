"""Attack a real deployment from outside, and measure what others notice.

`make hostile-black-box`. Written from the text of the first trial and docs/security.md alone: it
imports nothing of `service` but the embedded Postgres, and shares nothing with the other attacks of
this folder. It starts `hookline serve` with TLS and API keys, 1,024 descriptors and the default
HOOKLINE_MEMORY_MB, once for each of `--workers`. A process of its own (`--observe`) publishes for
another tenant all the while, receives its deliveries and samples memory, so that what the attacker
spends is not counted as the service's.
"""

# ruff: noqa: ANN401, ARG001, ASYNC109, ASYNC110, ASYNC230, ASYNC240, B023, E501, FBT001, PERF401, PLR0917, PYI034, RUF001, S608 - one script of many small attacks; messages of any type, statements and addresses that are hostile on purpose

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gzip
import itertools
import json
import os
import re
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import trustme
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from hookline.v1 import access_service_pb2 as access
from hookline.v1 import delivery_service_pb2 as deliveries
from hookline.v1 import event_pb2 as events
from hookline.v1 import event_service_pb2 as publishing
from hookline.v1 import event_type_service_pb2 as types
from hookline.v1 import subscription_service_pb2 as subscriptions
from hookline.v1 import tenant_service_pb2 as tenants
from hookline.v1.api_key_pb2 import API_KEY_SCOPE_ADMIN
from tests.postgres import embedded

DESCRIPTORS = 1024
CEILING_MB = 1_536
"""HOOKLINE_MEMORY_MB, of each process: no attack may raise one beyond it."""
FAILED_SHARE = 0.01
"""The share of the known publisher's calls that may fail during an attack."""
PUBLISH = "/hookline.v1.EventService/PublishEvents"
STREAM = "/hookline.v1.EventService/StreamPublishEvents"
LIST_EVENTS = "/hookline.v1.EventService/ListEvents"
CHECK = "/grpc.health.v1.Health/Check"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SUBSCRIPTION = "/hookline.v1.SubscriptionService/"
CALLS_PER_S = 40
CONNECTIONS = 4
MIB = 1 << 20


# ----------------------------------------------------------------------- HTTP/2, as one likes it

DATA, HEADERS, PRIORITY, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = (
    0, 1, 2, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + payload
    )


def hpack(*fields: tuple[str, str]) -> bytes:
    """Literal fields without indexing."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _text(value: str) -> bytes:
    raw, size = value.encode(), bytearray()
    left = len(raw)
    if left < 127:
        size.append(left)
    else:
        size.append(127)
        left -= 127
        while left >= 128:
            size.append(left % 128 + 128)
            left //= 128
        size.append(left)
    return bytes(size) + raw


def message(raw: bytes, *, compressed: bool = False) -> bytes:
    """One message as gRPC frames it."""
    return struct.pack(">?I", compressed, len(raw)) + raw


class Http2:
    """One connection whose frames are the attacker's own."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, initial: int
    ) -> None:
        self.writer = writer
        self.ended: dict[int, str] = {}
        self.goaway: int | None = None
        self.closed = False
        self._initial_own = initial
        self._streams = itertools.count(1, 2)
        self._initial = 65535
        self._window = 65535
        self._spent: Counter[int] = Counter()
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._read(reader))

    @classmethod
    async def open(cls, site: Deployment, *, initial: int = 65535) -> Http2:
        """Connect. Its own streams' windows are `initial`: 0 takes no answer at all."""
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(
                "127.0.0.1", site.port, ssl=site.tls, server_hostname="localhost"
            ),
            15,
        )
        own = cls(reader, writer, initial=initial)
        # No dynamic table: the peer's fields are literal, and a status can be searched for.
        writer.write(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HIHI", 1, 0, 4, initial)))
        return own

    def request(
        self, path: str, *fields: tuple[str, str], token: str = "", end: bool = False
    ) -> int:
        """Begin a call, and return its stream."""
        stream = next(self._streams)
        own = (("authorization", f"Bearer {token}"),) if token else ()
        block = hpack(
            (":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "localhost"),
            ("te", "trailers"), ("content-type", "application/grpc"), *own, *fields,
        )  # fmt: skip
        self.write(frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block))
        return stream

    def write(self, raw: bytes) -> None:
        if not self.closed and not self.writer.transport.is_closing():
            self.writer.write(raw)

    async def send(self, stream: int, raw: bytes, *, end: bool = True) -> None:
        """Send data within the peer's windows."""
        left = memoryview(raw)
        while left and not self.closed and stream not in self.ended:
            async with self._changed:
                allowed = min(self._window, self._initial - self._spent[stream], 16384, len(left))
                if allowed <= 0:
                    await self._changed.wait()
                    continue
                self._window -= allowed
                self._spent[stream] += allowed
            last = end and allowed == len(left)
            self.write(frame(DATA, END_STREAM if last else 0, stream, bytes(left[:allowed])))
            left = left[allowed:]
            with contextlib.suppress(OSError):
                await self.writer.drain()

    async def wait(self, stream: int, timeout: float = 30) -> str:
        """How a call ended: its grpc-status, RST or CLOSED; OPEN if it has not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: stream in self.ended or self.closed)
        return self.ended.get(stream, "CLOSED" if self.closed else "OPEN")

    async def close(self) -> None:
        self.closed = True
        self._task.cancel()
        self.writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                async with self._changed:
                    self._take(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)
                    self._changed.notify_all()
        async with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS and flags & END_STREAM:
            found = re.search(rb"grpc-status.(\d+)", payload, re.DOTALL)
            self.ended[stream] = found[1].decode() if found else "?"
        elif kind == RST:
            self.ended[stream] = f"RST {int.from_bytes(payload, 'big')}"
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        elif kind == SETTINGS and not flags & ACK:
            for place in range(0, len(payload), 6):
                key, value = struct.unpack(">HI", payload[place : place + 6])
                if key == 4:
                    self._initial = value
            self.write(frame(SETTINGS, ACK, 0))
        elif kind == WINDOW:
            more = int.from_bytes(payload, "big")
            if stream:
                self._spent[stream] -= more
            else:
                self._window += more
        elif kind == DATA and self._initial_own and payload:
            update = struct.pack(">I", len(payload))
            self.write(frame(WINDOW, 0, 0, update) + frame(WINDOW, 0, stream, update))
        elif kind == PING and not flags & ACK:
            self.write(frame(PING, ACK, 0, payload))


# ---------------------------------------------------------------------------------- the deployment


@dataclass
class Deployment:
    """What is attacked: its address, its keys, its processes."""

    directory: Path
    url: str
    workers: int
    authority: trustme.CA
    environment: dict[str, str]
    port: int
    metrics_port: int
    pid: int
    tls: ssl.SSLContext
    root: str = ""
    known: str = ""
    publish: str = ""
    manage: str = ""
    operate: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(self.address, self.credentials, options) as channel:
            yield channel

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority.cert_pem.bytes())

    async def call(
        self, path: str, request: Any, answer: Any, token: str, timeout: float = 20
    ) -> Any:
        async with self.channel() as channel:
            return await call(channel, path, request, answer, token, timeout)

    async def refusal(self, path: str, request: Any, token: str, timeout: float = 20) -> str:
        """The status and words that a call is answered with; OK where it succeeds."""
        try:
            await self.call(path, request, None, token, timeout)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "OK"

    def hookline(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("hookline")), *arguments],
            env=self.environment | more, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


async def call(
    channel: grpc.aio.Channel, path: str, request: Any, answer: Any, token: str, timeout: float = 20
) -> Any:
    method: Any = channel.unary_unary(
        path,
        request_serializer=lambda one: one.SerializeToString(),
        response_deserializer=answer.FromString if answer else None,
    )
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    return await method(request, metadata=metadata, timeout=timeout)


def free_ports(count: int) -> int:
    """The first of some neighbouring ports that are free now."""
    for first in range(20000 + os.getpid() % 8000, 32000, 16):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return first
    raise OSError("no port is free")


@contextlib.contextmanager
def deployed(url: str, workers: int) -> Iterator[Deployment]:
    """Migrate and serve while inside."""
    with tempfile.TemporaryDirectory(prefix="hookline-black-box-") as place:
        directory = Path(place)
        authority = trustme.CA()
        own = authority.issue_cert("localhost", "127.0.0.1")
        own.private_key_pem.write_to_path(str(directory / "tls.key"))
        own.cert_chain_pems[0].write_to_path(str(directory / "tls.crt"))
        authority.cert_pem.write_to_path(str(directory / "ca.crt"))
        master = directory / "master.key"
        master.write_bytes(base64.b64encode(os.urandom(32)))
        master.chmod(0o400)
        port = free_ports(8)
        environment = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ
        }
        environment |= {
            "HOOKLINE_DATABASE_URL": url,
            "HOOKLINE_MASTER_KEY_FILE": str(master),
        }
        serving = environment | {
            "HOOKLINE_LISTEN": f"127.0.0.1:{port}",
            "HOOKLINE_TLS_CERT": str(directory / "tls.crt"),
            "HOOKLINE_TLS_KEY": str(directory / "tls.key"),
            "HOOKLINE_WORKERS": str(workers),
            "HOOKLINE_MEMORY_MB": str(CEILING_MB),
            "HOOKLINE_PROMETHEUS_LISTEN": f"127.0.0.1:{port + 1}",
            "HOOKLINE_EGRESS_ALLOW": "127.0.0.0/8",
            "HOOKLINE_EGRESS_CA_FILE": str(directory / "ca.crt"),
        }
        tls = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
        tls.set_alpn_protocols(["h2"])
        site = Deployment(
            directory, url, workers, authority, environment, port, port + 1,
            0, tls,
        )  # fmt: skip
        migrated = site.hookline("migrate")
        if migrated.returncode:
            raise RuntimeError(migrated.stderr)
        log = Path(os.environ.get("BLACK_BOX_LOG", directory / "serve.log"))
        resolver = directory / "resolv.conf"
        resolver.write_text(f"nameserver {RESOLVER.address}\noptions timeout:1 attempts:1\n")
        with log.open("w") as output:
            process = serve(serving, output, resolver if os.geteuid() == 0 else None)
        site.pid = process.pid
        try:
            wait_until_ready(log, process)
            site.root = new_key(site, "admin")
            yield site
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                site.notes.append(f"exit code {process.wait(60)} on SIGTERM")
            except subprocess.TimeoutExpired:
                site.notes.append("SIGTERM did not end it in 60 s: killed")
                for one in reversed(family(site.pid)):
                    os.kill(one, signal.SIGKILL)
            text = log.read_text(errors="replace")
            site.notes.append(f"{text.count('Traceback')} tracebacks in the log")
            site.notes.extend(sorted(set(re.findall(r'"event": ?"(worker_\w+)"', text))))


def serve(
    environment: dict[str, str], output: Any, resolver: Path | None = None
) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("hookline")), "serve"]
    if resolver:
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, str(resolver), *command]
    return subprocess.Popen(
        command,
        env=environment, stdout=output, stderr=subprocess.STDOUT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS)),  # noqa: PLW1509 - no thread runs yet
    )  # fmt: skip


def wait_until_ready(log: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if "ready" in log.read_text().splitlines():
            return
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    raise TimeoutError("serve is not ready after a minute")


def new_key(site: Deployment, *scopes: str, tenant: str = "") -> str:
    arguments = [part for scope in scopes for part in ("--scope", scope)]
    made = site.hookline("keys", "create", *arguments, *(("--tenant", tenant) if tenant else ()))
    if made.returncode:
        raise RuntimeError(made.stderr)
    return made.stdout.strip()


async def prepare(site: Deployment, receiver: int) -> None:
    """Two tenants, their keys, and a subscription of the known one."""
    for tenant in ("known", "hostile"):
        request = tenants.CreateTenantRequest(tenant_id=tenant)
        await site.call("/hookline.v1.TenantService/CreateTenant", request, None, site.root)
    site.known = new_key(site, "publish", tenant="known")
    site.publish = new_key(site, "publish", tenant="hostile")
    site.manage = new_key(site, "manage", tenant="hostile")
    site.operate = new_key(site, "operate", tenant="hostile")
    await subscribe(site, "known", "all", f"http://127.0.0.1:{receiver}/")


async def subscribe(
    site: Deployment, tenant: str, name: str, url: str, *, kind: str = "*", attempts: int = 0
) -> str:
    request = subscriptions.CreateSubscriptionRequest(
        tenant=f"tenants/{tenant}", subscription_id=name
    )
    request.subscription.event_types.append(kind)
    request.subscription.http.url = url
    request.subscription.retry_policy.max_attempts = attempts
    return await site.refusal(SUBSCRIPTION + "CreateSubscription", request, site.root)


def batch(tenant: str, *data: str, kind: str = "t") -> publishing.PublishEventsRequest:
    return publishing.PublishEventsRequest(
        tenant=f"tenants/{tenant}", events=[events.Event(type=kind, json_data=one) for one in data]
    )


class Resolver:
    """A DNS server of our own: names below black-box.example lead to loopback, others to nothing."""

    def __init__(self) -> None:
        self.mode = "answer"
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.address = f"127.66.{os.getpid() >> 8 & 255}.{os.getpid() & 255 | 1}"

    def start(self) -> None:
        self._socket.bind((self.address, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(4096)
            place, labels = 12, []
            while query[place]:
                labels.append(query[place + 1 : place + 1 + query[place]].decode().lower())
                place += 1 + query[place]
            kind = int.from_bytes(query[place + 1 : place + 3], "big")
            question = query[12 : place + 5]
            if self.mode == "silent":
                continue
            is_ours = labels[-2:] == ["black-box", "example"]
            code = 2 if self.mode == "servfail" else 0 if is_ours else 3
            found = (
                b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + bytes((127, 0, 0, 1))
                if not code and kind == 1
                else b""
            )
            head = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, bool(found), 0, 0)
            self._socket.sendto(head + question + found, sender)


RESOLVER = Resolver()


# ------------------------------------------------------------------------------------ the observer


PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def family(pid: int) -> list[int]:
    """A process and those below it, of those that run."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in below for one in family(int(child)))]


class Observer:
    """Publishes as the known tenant, receives its deliveries, samples memory; prints each."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._begun: dict[str, float] = {}

    async def run(self) -> None:
        server = await asyncio.start_server(self._receive, "127.0.0.1", 0)
        report(kind="port", port=server.sockets[0].getsockname()[1])
        line = await asyncio.to_thread(sys.stdin.readline)
        self._config |= json.loads(line)
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._publish())
            group.create_task(self._connect())
            group.create_task(asyncio.to_thread(self._sample))
            await asyncio.to_thread(sys.stdin.readline)
            os._exit(0)

    def _channel(self) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(Path(self._config["ca"]).read_bytes())
        return grpc.aio.secure_channel(
            self._config["address"], credentials, [("grpc.use_local_subchannel_pool", 1)]
        )

    async def _publish(self) -> None:
        loop, pending = asyncio.get_running_loop(), set()
        async with self._channel() as channel:
            due = loop.time()
            while True:
                due += CONNECTIONS / CALLS_PER_S
                await asyncio.sleep(max(due - loop.time(), 0))
                task = asyncio.create_task(self._call(channel, "call"))
                pending.add(task)
                task.add_done_callback(pending.discard)

    async def _connect(self) -> None:
        while True:
            async with self._channel() as channel:
                await self._call(channel, "fresh")
            await asyncio.sleep(0.5)

    async def _call(self, channel: grpc.aio.Channel, kind: str) -> None:
        begun, code, words, mark = time.monotonic(), "OK", "", os.urandom(6).hex()
        self._begun[mark] = begun
        try:
            await call(
                channel,
                PUBLISH,
                batch("known", json.dumps({"mark": mark})),
                None,
                self._config["token"],
                15,
            )
        except grpc.aio.AioRpcError as error:
            code, words = error.code().name, error.details() or ""
        report(kind=kind, at=begun, s=time.monotonic() - begun, code=code, words=words)

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                size = re.search(r"content-length: (\d+)", head)
                body = await reader.readexactly(int(size[1]) if size else 0)
                begun = self._begun.pop(json.loads(body)["data"]["mark"], None)
                if begun is not None:
                    report(kind="delivery", at=begun, s=time.monotonic() - begun)
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    def _sample(self) -> None:
        while True:
            rss, cpu, ran, waited = [], 0.0, 0.0, 0.0
            for pid in family(self._config["pid"]):
                with contextlib.suppress(OSError):
                    place = Path("/proc", str(pid))
                    rss.append(int((place / "statm").read_text().split()[1]) * PAGE_BYTES / 1e6)
                    spent = (place / "stat").read_text().rpartition(")")[2].split()
                    cpu += (int(spent[11]) + int(spent[12])) / os.sysconf("SC_CLK_TCK")
                    loop = (place / "schedstat").read_text().split()
                    ran, waited = ran + int(loop[0]) / 1e9, waited + int(loop[1]) / 1e9
            report(
                kind="rss",
                at=time.monotonic(),
                each=max(rss, default=0),
                all=sum(rss),
                cpu=cpu,
                ran=ran,
                waited=waited,
            )
            time.sleep(0.05)


def report(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Observed:
    """What the observer has written, by time.

    It writes to a file, not to a pipe: an attacker that is too busy to read must not slow it down.
    """

    def __init__(self) -> None:
        self._lines: list[dict[str, Any]] = []
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[[Deployment], None]]:
        with tempfile.NamedTemporaryFile("r") as written, Path(written.name).open("w") as output:
            self._written = written
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.hostile.black_box",
                "--observe",
                stdin=subprocess.PIPE,
                stdout=output,
            )
            assert process.stdin
            while not self.lines:
                await asyncio.sleep(0.1)
            self.port = self.lines[0]["port"]

            def begin(site: Deployment) -> None:
                assert process.stdin
                config = {
                    "address": site.address,
                    "ca": str(site.directory / "ca.crt"),
                    "token": site.known,
                    "pid": site.pid,
                }
                process.stdin.write(json.dumps(config).encode() + b"\n")

            try:
                yield begin
            finally:
                process.stdin.write(b"\n")
                await process.wait()

    @property
    def lines(self) -> list[dict[str, Any]]:
        place = self._written.tell()  # allow-word: tell (a method of files)
        for line in self._written.read().splitlines(keepends=True):
            if not line.endswith("\n"):
                self._written.seek(place)
                break
            place += len(line)
            self._lines.append(json.loads(line))
        return self._lines

    def within(self, kind: str, start: float, end: float) -> list[dict[str, Any]]:
        return [
            one
            for one in self.lines
            if one["kind"] == kind and "at" in one and start <= one["at"] < end
        ]


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)] if values else float("nan")


# ------------------------------------------------------------------------------------- the attacks

Attack = Callable[[Deployment], Awaitable[tuple[bool, str]]]
"""Returns whether what it checks itself held, and what it observed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the deployment must keep during an attack, for the attack to count as held."""

    rss_mb: float = CEILING_MB
    """Of the largest process."""
    failed_share: float = FAILED_SHARE
    """Of the known publisher's calls."""
    longest_s: float = 15.0
    """The slowest of its calls; at 15 s it gives up."""
    calls: int = 1
    """The fewest of its calls that the figures are from."""

    def exceeded(self, row: Row) -> list[str]:
        """Return the limits that the figures of a row exceed."""
        found = {
            f"RSS {row.rss_peak:.0f} of {self.rss_mb:.0f} MB": not 0 < row.rss_peak <= self.rss_mb,
            f"{row.failures} of {row.calls} known calls failed": row.failures
            > self.failed_share * row.calls,
            f"{row.cancelled} known calls ended with a bare CANCELLED": row.cancelled > 0,
            f"a known call took {row.worst:.1f} of {self.longest_s:g} s": not row.worst
            <= self.longest_s,
            f"only {row.calls} of {self.calls} known calls": row.calls < self.calls,
            "the known publisher did not recover": not row.recovered,
        }
        return [text for text, is_exceeded in found.items() if is_exceeded]


ATTACKS: dict[str, tuple[str, str, Attack, Limits]] = {}


def attack(
    name: str,
    row: str,
    expected: str,
    limits: Limits = Limits(),
) -> Callable[[Attack], Attack]:
    def note(function: Attack) -> Attack:
        ATTACKS[name] = (row, expected, function, limits)
        return function

    return note


async def reopened(site: Deployment, end: float, outcomes: Counter[str]) -> AsyncIterator[Http2]:
    """Yield one open connection after the other until `end`, counting failures to connect."""
    while time.monotonic() < end:
        try:
            connection = await Http2.open(site)
        except (OSError, TimeoutError):
            outcomes["no connection"] += 1
            await asyncio.sleep(0.2)
            continue
        yield connection
        await connection.close()


def summary(results: list[str] | Counter[str]) -> str:
    return ", ".join(f"{count} × {what}" for what, count in Counter(results).most_common(6))


async def flood(
    site: Deployment, connections: int, calls: int, one: Callable[[Http2], Awaitable[str]]
) -> Counter[str]:
    """Run `one` `calls` times on each of some connections, 100 at once."""
    outcomes: Counter[str] = Counter()

    async def connect() -> None:
        left = calls
        while left > 0:
            try:
                connection = await Http2.open(site)
            except (OSError, TimeoutError) as error:
                outcomes[f"no connection ({type(error).__name__})"] += 1
                return
            gate = asyncio.Semaphore(100)

            async def turn() -> None:
                async with gate:
                    outcomes[await one(connection)] += 1

            took = min(left, 1000)
            await asyncio.gather(*(turn() for _ in range(took)))
            left -= took
            await connection.close()

    await asyncio.gather(*(connect() for _ in range(connections)))
    return outcomes


# 7.9 MiB whose gzip form is 8 KB.
BOMB = gzip.compress(bytes(8_283_000))


@attack("gzip-keyless", "H1", "refused before it is unpacked; RSS < 400 MB", Limits(rss_mb=400))
async def _gzip_keyless(site: Deployment) -> tuple[bool, str]:
    async def one(connection: Http2) -> str:
        stream = connection.request(CHECK, ("grpc-encoding", "gzip"))
        await connection.send(stream, message(BOMB, compressed=True))
        return await connection.wait(stream)

    outcomes = await flood(site, 4, 1000, one)
    return True, f"{len(BOMB)} B each: {summary(outcomes)}"


@attack("gzip-variants", "H1", "no encoding unpacks anything; RSS < 400 MB", Limits(rss_mb=400))
async def _gzip_variants(site: Deployment) -> tuple[bool, str]:
    turn = itertools.cycle(
        ("deflate", "gzip,deflate", "identity", "GZIP", "", "stream/gzip", "x-gzip")
    )

    async def one(connection: Http2) -> str:
        name = next(turn)
        fields = [("grpc-encoding", name)] if name else []
        if name == "gzip":
            fields.append(("content-encoding", "gzip"))
        stream = connection.request(CHECK, *fields)
        await connection.send(stream, message(BOMB, compressed=True))
        return await connection.wait(stream)

    return True, summary(await flood(site, 2, 700, one))


@attack("gzip-with-key", "H2", "refused before it is unpacked; RSS < 400 MB", Limits(rss_mb=400))
async def _gzip_with_key(site: Deployment) -> tuple[bool, str]:
    async def one(connection: Http2) -> str:
        stream = connection.request(PUBLISH, ("grpc-encoding", "gzip"), token=site.publish)
        await connection.send(stream, message(BOMB, compressed=True))
        return await connection.wait(stream)

    return True, summary(await flood(site, 4, 100, one))


async def fill_events(site: Deployment) -> None:
    data = json.dumps({"text": "x" * 200_000})
    async with site.channel() as channel:
        for _ in range(3):
            await call(channel, PUBLISH, batch("hostile", *[data] * 18), None, site.publish)


@attack("zero-window-lists", "H2", "300 answers of 3 MiB that are not read stay within the ceiling")
async def _zero_window(site: Deployment) -> tuple[bool, str]:
    await fill_events(site)
    request = publishing.ListEventsRequest(
        tenant="tenants/hostile", page_size=1000, view=events.EVENT_VIEW_FULL
    )
    raw, opened = message(request.SerializeToString()), []
    for _ in range(3):
        connection = await Http2.open(site, initial=0)
        opened.append(connection)
        for _ in range(100):
            stream = connection.request(LIST_EVENTS, token=site.operate)
            await connection.send(stream, raw)
    await asyncio.sleep(8)
    ended = Counter(outcome for one in opened for outcome in one.ended.values())
    for one in opened:
        await one.close()
    return True, f"ended: {summary(ended) or 'none'}; then all connections were cut"


@attack("half-requests-with-key", "H2", "requests that never end are bounded")
async def _half_requests(site: Deployment) -> tuple[bool, str]:
    return await half_requests(site, PUBLISH, site.publish)


@attack("half-requests-keyless", "H2", "nothing is taken of an unauthenticated request")
async def _half_keyless(site: Deployment) -> tuple[bool, str]:
    return await half_requests(site, CHECK, "")


async def half_requests(site: Deployment, path: str, token: str) -> tuple[bool, str]:
    raw = struct.pack(">?I", False, 8 * MIB - 64) + bytes(8 * MIB - 100)
    opened = await asyncio.gather(*(Http2.open(site) for _ in range(6)))

    async def one(connection: Http2) -> None:
        stream = connection.request(path, token=token)
        await connection.send(stream, raw, end=False)

    tasks = [asyncio.create_task(one(connection)) for connection in opened for _ in range(100)]
    await asyncio.sleep(10)
    for task in tasks:
        task.cancel()
    ended = Counter(outcome for one in opened for outcome in one.ended.values())
    for connection in opened:
        await connection.close()
    return True, f"600 of 8 MiB; ended: {summary(ended) or 'none'}"


@attack("streams-unread", "H2", "answers of publishing streams that are not read are bounded")
async def _streams_unread(site: Deployment) -> tuple[bool, str]:
    opened = await asyncio.gather(*(Http2.open(site, initial=0) for _ in range(4)))

    broken = [events.Event(type="", json_data="{")] * 20
    raw = [
        message(
            publishing.StreamPublishEventsRequest(
                sequence=number, tenant="tenants/hostile", events=broken
            ).SerializeToString()
        )
        for number in range(1, 3000)
    ]

    async def one(connection: Http2) -> None:
        stream = connection.request(STREAM, token=site.publish)
        for first in range(0, len(raw), 50):
            await connection.send(stream, b"".join(raw[first : first + 50]), end=False)

    tasks = [asyncio.create_task(one(connection)) for connection in opened for _ in range(50)]
    await asyncio.sleep(10)
    for task in tasks:
        task.cancel()
    ended = Counter(outcome for one in opened for outcome in one.ended.values())
    for connection in opened:
        await connection.close()
    return True, f"200 streams; ended: {summary(ended) or 'none'}"


def doubling(levels: int) -> dict[str, Any]:
    schemas: dict[str, Any] = {"l0": {"type": "integer"}}
    for level in range(1, levels + 1):
        below = {"$ref": f"#/$defs/l{level - 1}"}
        schemas[f"l{level}"] = {"allOf": [below, below]}
    return {"$defs": schemas, "$ref": f"#/$defs/l{levels}"}


def nested(size: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    while len(json.dumps(schema)) * 2 + 20 < size:
        schema = {"allOf": [schema, schema]}
    return schema


RECURSIVE = '{"$ref":"#/$defs/a","$defs":{"a":{"anyOf":[{"type":"array","items":{"$ref":"#/$defs/a"}},{"type":"array","items":{"$ref":"#/$defs/a"}}]}}}'
HOSTILE_SCHEMAS: dict[str, tuple[str, list[str]]] = {
    "recursive": (RECURSIVE, ["[" * 19 + "1" + "]" * 19]),
    "lookahead": (json.dumps({"type": "object", "properties": {"a": {"pattern": "(?!y)x*x*x*x*y"}}}), [json.dumps({"a": "x" * 60_000})]),
    "nested": (json.dumps(nested(2000)), ['"a"']),
    "levels": (json.dumps(doubling(26)), ['"a"', '{"a": 1}']),
}  # fmt: skip
MORE_SCHEMAS: dict[str, tuple[str, list[str]]] = {
    "unique": (json.dumps({"uniqueItems": True}), [json.dumps([[n] for n in range(30_000)]), json.dumps([{"a": n} for n in range(18_000)])]),
    "patterns": (json.dumps({"patternProperties": {f"^(a|b|ab){{0,{n}}}c": {"type": "integer"} for n in range(400)}}), [json.dumps({"ab" * 20 + str(n): "x" for n in range(4000)})]),
    "enum": (json.dumps({"items": {"enum": [[n, [n]] for n in range(3000)]}}), [json.dumps([[n, [n + 1]] for n in range(9000)])]),
    "oneof": (json.dumps({"items": {"oneOf": [{"type": "string", "minLength": n} for n in range(1000)]}}), [json.dumps(["x" * 8 for n in range(20_000)])]),
    "unevaluated": (json.dumps({"$defs": {"n": {"properties": {"a": {"$ref": "#/$defs/n"}}, "anyOf": [{"properties": {"b": True}}, {"properties": {"c": True}}], "unevaluatedProperties": False}}, "$ref": "#/$defs/n"}), ['{"a":' * 100 + '{"z":1}' + "}" * 100]),
    "dynamic": (json.dumps({"$dynamicAnchor": "n", "anyOf": [{"items": {"$dynamicRef": "#n"}, "type": "array"}, {"contains": {"$dynamicRef": "#n"}, "type": "array"}]}), ["[" * 60 + "1" + "]" * 60]),
    "loop": ('{"$ref":"#"}', ["1"]),
    "loop2": ('{"$defs":{"a":{"allOf":[{"$ref":"#/$defs/b"}]},"b":{"anyOf":[{"$ref":"#/$defs/a"}]}},"$ref":"#/$defs/a"}', ["1"]),
    "regex": (json.dumps({"items": {"pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}}), [json.dumps(["a" * 40] * 1000)]),
    "repeat": (json.dumps({"items": {"pattern": "(x{0,900}){0,900}y"}}), [json.dumps(["x" * 2000] * 50)]),
    "formats": (json.dumps({"items": {"format": "email", "allOf": [{"format": "idn-hostname"}, {"format": "iri"}, {"format": "regex"}]}}), [json.dumps(["(" * 5000, "a." * 20_000, "@" * 50_000])]),
    "multiple": (json.dumps({"items": {"multipleOf": 1e-300}}), [json.dumps([1e308] * 30_000)]),
    "many-errors": (json.dumps({"items": {"type": "string", "enum": ["y" * 20_000]}}), [json.dumps([1] * 100_000)]),
    "deep": (json.dumps({"items": {"$ref": "#"}, "type": "array"}), ["[" * 127 + "1" + "]" * 127]),
}  # fmt: skip


async def hostile_schemas(
    site: Deployment, schemas: dict[str, tuple[str, list[str]]], seconds: float
) -> tuple[bool, str]:
    registered, outcomes, slow = [], Counter[str](), 0.0
    for name, (schema, data) in schemas.items():
        kind = f"hostile.{name}.n{time.monotonic_ns()}"
        request = types.CreateEventTypeRequest(event_type_id=kind)
        request.event_type.json_schema = schema
        path = "/hookline.v1.EventTypeService/CreateEventType"
        begun = time.monotonic()
        answer = await site.refusal(path, request, site.root)
        outcomes[
            f"{name} registered" if answer == "OK" else f"{name} refused ({answer.split(':')[0]})"
        ] += 1
        slow = max(slow, time.monotonic() - begun)
        if answer == "OK":
            registered.append((name, kind, data))
    statuses, longest, end = Counter[str](), Counter[str](), time.monotonic() + seconds

    async def publish(name: str, kind: str, data: list[str]) -> None:
        async with site.channel() as channel:
            while time.monotonic() < end:
                begun = time.monotonic()
                for one in data:
                    try:
                        await call(
                            channel,
                            PUBLISH,
                            batch("hostile", *([one] * (50 if len(one) < 100 else 1)), kind=kind),
                            None,
                            site.publish,
                        )
                        status = "OK"
                    except grpc.aio.AioRpcError as error:
                        status = error.code().name
                    statuses[f"{name} {status}"] += 1
                longest[name] = max(longest[name], int((time.monotonic() - begun) * 1000))

    await asyncio.gather(*(publish(*one) for one in registered for _ in range(3)))
    return (
        True,
        f"{summary(outcomes)}; registering took {slow:.2f} s at most; {summary(statuses)}; slowest ms {longest.most_common(3)}",
    )


@attack(
    "schemas",
    "H3",
    "RSS < 400 MB, another tenant's publish < 1 s",
    Limits(rss_mb=400, longest_s=1.0),
)
async def _schemas(site: Deployment) -> tuple[bool, str]:
    return await hostile_schemas(site, HOSTILE_SCHEMAS, 15)


@attack("more-schemas", "H3", "the same of 14 others", Limits(rss_mb=400, longest_s=1.0))
async def _more_schemas(site: Deployment) -> tuple[bool, str]:
    return await hostile_schemas(site, MORE_SCHEMAS, 15)


@attack("metrics-port", "M1", "calls, deliveries and new connections go on")
async def _metrics_port(site: Deployment) -> tuple[bool, str]:
    opened, refused = [], 0
    for number in range(997 * site.workers):
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection("127.0.0.1", site.metrics_port + number % site.workers), 5
            )
            writer.write(b"GET /metrics HTTP/1.1\r\nhost: a\r\n")
            opened.append((reader, writer))
        except (OSError, TimeoutError):
            refused += 1
    await asyncio.sleep(5)
    open_still = sum(not reader.at_eof() for reader, _ in opened)
    served = await asyncio.to_thread(scrape, site.metrics_port)
    for _, writer in opened:
        writer.transport.abort()
    return served.startswith(
        "HTTP/1.1 200"
    ), f"{len(opened)} opened, {refused} refused, {open_still} kept; a scrape among them: {served}"


def scrape(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            return connection.recv(15).decode("latin-1")
    except OSError as error:
        return type(error).__name__


@attack("health-list", "L1", "a list, or UNIMPLEMENTED; no INTERNAL")
async def _health_list(site: Deployment) -> tuple[bool, str]:
    answer = await site.refusal("/grpc.health.v1.Health/List", HealthCheckRequest(), "")
    return not answer.startswith(("INTERNAL", "UNKNOWN")), answer[:80]


@attack("pings", "L2", "200 in one write end the connection")
async def _pings(site: Deployment) -> tuple[bool, str]:
    sent, goaways, longest, end = 0, Counter[str](), 0.0, time.monotonic() + 5
    while time.monotonic() < end:
        connection, begun = await Http2.open(site), time.monotonic()
        while not connection.closed and connection.goaway is None and time.monotonic() < end:
            connection.write(frame(PING, 0, 0, bytes(8)) * 200)
            sent += 200
            with contextlib.suppress(OSError):
                await connection.writer.drain()
            await asyncio.sleep(0.001)
        longest = max(longest, time.monotonic() - begun)
        goaways[
            f"GOAWAY {connection.goaway}"
            if connection.goaway is not None
            else "closed"
            if connection.closed
            else "open still"
        ] += 1
        await connection.close()
    return (
        longest < 4,
        f"{sent} pings; {summary(goaways)}; a connection lived {longest:.2f} s at most",
    )


@attack(
    "keyless-flood",
    "L3",
    "no known call ends with a bare CANCELLED, of 2,000 or more",
    Limits(calls=2_000),
)
async def _keyless_flood(site: Deployment) -> tuple[bool, str]:
    end = time.monotonic() + 2100 / CALLS_PER_S
    turn, outcomes = itertools.count(), Counter[str]()

    async def flooding() -> None:
        async for connection in reopened(site, end, outcomes):
            while time.monotonic() < end and not connection.closed and connection.goaway is None:
                begun = []
                for _ in range(100):
                    path = (PUBLISH, CHECK, "/a/b", LIST_EVENTS)[next(turn) % 4]
                    stream = connection.request(path, ("authorization", "Bearer hk_x"))
                    connection.write(frame(DATA, END_STREAM, stream, message(b"")))
                    begun.append(stream)
                for stream in begun:
                    outcomes[await connection.wait(stream, 10)] += 1

    await asyncio.gather(*(flooding() for _ in range(20)))
    return True, f"20 connections, statuses {summary(outcomes)}"


@attack("rapid-reset", "L3", "others are answered; no bare CANCELLED")
async def _rapid_reset(site: Deployment) -> tuple[bool, str]:
    end, sent, goaways = time.monotonic() + 10, 0, Counter[str]()

    async def flooding() -> None:
        nonlocal sent
        async for connection in reopened(site, end, goaways):
            while time.monotonic() < end and not connection.closed and connection.goaway is None:
                for _ in range(50):
                    stream = connection.request(CHECK)
                    connection.write(frame(RST, 0, stream, struct.pack(">I", 8)))
                    sent += 1
                with contextlib.suppress(OSError):
                    await connection.writer.drain()
                await asyncio.sleep(0)
            goaways[f"GOAWAY {connection.goaway}"] += 1

    await asyncio.gather(*(flooding() for _ in range(8)))
    return True, f"{sent} resets; {summary(goaways)}"


def blocking(site: Deployment) -> ssl.SSLSocket:
    """A connection without a loop: its writes leave the interpreter, so that threads flood faster."""
    connection = socket.create_connection(("127.0.0.1", site.port), 5)
    return site.tls.wrap_socket(connection, server_hostname="localhost")


def opening(kind: str) -> bytes:
    """What comes before the flood of one kind."""
    begun = PREFACE + frame(SETTINGS, 0, 0)
    if kind == "empty-data":
        fields = (
            (":method", "POST"),
            (":scheme", "https"),
            (":path", CHECK),
            (":authority", "a"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
        return begun + frame(HEADERS, END_HEADERS, 1, hpack(*fields))
    return begun + (
        frame(HEADERS, 0, 1, hpack((":method", "POST"))) if kind == "continuation" else b""
    )


def small_frames(kind: str) -> bytes:
    match kind:
        case "settings":
            return frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)) * 500
        case "priority":
            return frame(PRIORITY, 0, 1, struct.pack(">IB", 0, 1)) * 500
        case "window":
            return frame(WINDOW, 0, 0, struct.pack(">I", 1)) * 500
        case "empty-data":
            return frame(DATA, 0, 1) * 500
        case "unknown":
            return frame(0x42, 0, 0, bytes(64)) * 500
        case _:
            return frame(CONTINUATION, 0, 1, hpack(("x-a", "b" * 100)) * 100)


for _kind in ("settings", "priority", "window", "empty-data", "unknown", "continuation"):

    async def _frames(
        site: Deployment, kind: str = _kind, connections: int = 2
    ) -> tuple[bool, str]:
        end, found = time.monotonic() + 6, Counter[str]()

        def flooding() -> None:
            raw = small_frames(kind)
            while time.monotonic() < end:
                try:
                    with blocking(site) as connection:
                        connection.sendall(opening(kind))
                        while time.monotonic() < end:
                            connection.sendall(raw)
                            found["writes of 500 frames"] += 1
                        found["connection open at the end"] += 1
                except OSError as error:
                    found[f"connection ended ({type(error).__name__})"] += 1
                    time.sleep(0.02)

        with ThreadPoolExecutor(connections) as pool:
            await asyncio.gather(
                *(
                    asyncio.get_running_loop().run_in_executor(pool, flooding)
                    for _ in range(connections)
                )
            )
        return True, f"{connections} connections: {summary(found)}"

    attack(f"frames-{_kind}", "suite", "calls go on")(_frames)
    if _kind in ("unknown", "priority", "window"):
        attack(f"many-{_kind}", "suite", "calls go on, and memory does not grow with connections")(
            partial(_frames, connections=300)
        )


@attack("metadata", "suite", "huge and many headers are refused; RSS < 400 MB", Limits(rss_mb=400))
async def _metadata(site: Deployment) -> tuple[bool, str]:
    turn = itertools.count()

    async def one(connection: Http2) -> str:
        number = next(turn)
        fields = (
            [(f"x-{n}", "v" * 150) for n in range(100)]
            if number % 2
            else [("authorization", "Bearer " + "a" * 15000)]
        )
        stream = connection.request(CHECK, *fields)
        return await connection.wait(stream, 3)

    return True, summary(await flood(site, 10, 500, one))


@attack("hpack-bomb", "suite", "references to one large field are refused")
async def _hpack_bomb(site: Deployment) -> tuple[bool, str]:
    outcomes: Counter[str] = Counter()

    async def one() -> None:
        connection = await Http2.open(site)
        block = hpack(
            (":method", "POST"),
            (":scheme", "https"),
            (":path", CHECK),
            (":authority", "a"),
            ("content-type", "application/grpc"),
        )
        insert = b"\x40" + _text("x-bomb") + _text("b" * 3900)
        connection.write(frame(HEADERS, END_HEADERS, 1, block + insert + b"\xbe" * 12000))
        for stream in range(3, 200, 2):
            connection.write(frame(HEADERS, END_HEADERS, stream, block + b"\xbe" * 16000))
        outcomes[await connection.wait(1, 4)] += 1
        await connection.close()

    for _ in range(10):
        await asyncio.gather(*(one() for _ in range(5)))
    return True, summary(outcomes)


@attack(
    "connections",
    "suite",
    "silent and half-open connections leave connections to others, or end in time",
)
async def _connections(site: Deployment) -> tuple[bool, str]:
    opened = []
    for _ in range(600):
        try:
            opened.append(
                await asyncio.wait_for(asyncio.open_connection("127.0.0.1", site.port), 3)
            )
        except (OSError, TimeoutError):
            break
    await asyncio.sleep(12)
    left = sum(not reader.at_eof() for reader, _ in opened)
    for _, writer in opened:
        writer.transport.abort()
    return True, f"{len(opened)} opened without a byte, {left} open after 12 s"


@attack("tls-connections", "suite", "idle TLS connections are bounded; known callers keep theirs")
async def _tls_connections(site: Deployment) -> tuple[bool, str]:
    opened: list[Http2] = []
    failed = 0
    for _ in range(14):
        made = await asyncio.gather(*(Http2.open(site) for _ in range(50)), return_exceptions=True)
        opened += [one for one in made if isinstance(one, Http2)]
        failed += sum(isinstance(one, BaseException) for one in made)
    for one in opened:
        one.request(CHECK)
    await asyncio.sleep(5)
    left = sum(not one.closed for one in opened)
    for one in opened:
        await one.close()
    return (
        True,
        f"{len(opened)} opened, {failed} refused, {left} open after 5 s, each with a half request",
    )


@attack("handshakes", "suite", "abandoned TLS handshakes cost others little")
async def _handshakes(site: Deployment) -> tuple[bool, str]:
    end, done = time.monotonic() + 8, 0
    context = ssl.create_default_context(cadata=site.authority.cert_pem.bytes().decode())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()

    async def storm() -> None:
        nonlocal done
        while time.monotonic() < end:
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection("127.0.0.1", site.port), 3
                )
            except (OSError, TimeoutError):
                await asyncio.sleep(0.05)
                continue
            writer.write(hello)
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(reader.read(1), 2)
            writer.transport.abort()
            done += 1

    await asyncio.gather(*(storm() for _ in range(30)))
    return True, f"{done} handshakes abandoned after the server's first byte"


@attack("reflection", "suite", "UNAUTHENTICATED; with a key bounded")
async def _reflection(site: Deployment) -> tuple[bool, str]:
    turn = itertools.count()
    raw = message(
        ServerReflectionRequest(
            file_containing_symbol="hookline.v1.EventService"
        ).SerializeToString()
    )

    async def one(connection: Http2) -> str:
        token = site.publish if next(turn) % 2 else ""
        stream = connection.request(REFLECT, token=token)
        await connection.send(stream, raw * 50, end=True)
        return f"{'key' if token else 'keyless'} {await connection.wait(stream)}"

    return True, summary(await flood(site, 4, 150, one))


@attack("page-tokens", "suite", "INVALID_ARGUMENT without cost")
async def _page_tokens(site: Deployment) -> tuple[bool, str]:
    turn = itertools.count()
    tokens = [
        "A" * 4_000_000,
        "é" * 1_000_000,
        "\0" * 1000,
        base64.urlsafe_b64encode(os.urandom(3_000_000)).decode(),
    ]
    raw = [
        message(
            publishing.ListEventsRequest(
                tenant="tenants/hostile", page_token=one
            ).SerializeToString()
        )
        for one in tokens
    ]

    async def one(connection: Http2) -> str:
        stream = connection.request(LIST_EVENTS, token=site.operate)
        await connection.send(stream, raw[next(turn) % len(raw)])
        return await connection.wait(stream)

    outcomes = await flood(site, 2, 100, one)
    return "13" not in outcomes, summary(outcomes)


@attack("filters", "suite", "filters and subscription expressions are bounded")
async def _filters(site: Deployment) -> tuple[bool, str]:
    found: Counter[str] = Counter()
    filters = [
        'type == "' + "a" * 900 + '"',
        " && ".join(['type == "t"'] * 60),
        "(" * 500 + "true" + ")" * 500,
        'attributes["a"] == "\0"',
        'create_time > timestamp("9999-99-99T00:00:00Z")',
        'type == "\ud7ff"',
    ]
    async with site.channel() as channel:
        for one in filters:
            request = publishing.ListEventsRequest(
                tenant="tenants/hostile", filter=one, page_size=1
            )
            found[await status(call(channel, LIST_EVENTS, request, None, site.operate))] += 1
        for one in (
            "(" * 2000 + "true" + ")" * 2000,
            "data.a.matches('(a+)+$')",
            "[1,2,3].all(x, [1,2,3].all(y, true))",
            "!" * 4000 + "true",
            "-" * 4000 + "1 == 1",
        ):
            create = subscriptions.CreateSubscriptionRequest(tenant="tenants/hostile")
            create.subscription.event_types.append("t")
            create.subscription.filter = one
            create.subscription.http.url = "https://example.com/"
            found[
                "subscription "
                + await status(
                    call(channel, SUBSCRIPTION + "CreateSubscription", create, None, site.manage)
                )
            ] += 1
    return not any("INTERNAL" in one or "UNKNOWN" in one for one in found), summary(found)


async def status(awaitable: Awaitable[Any]) -> str:
    try:
        await awaitable
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@attack("big-event-types", "suite", "many types of 64 KB schemas stay within the ceiling")
async def _big_event_types(site: Deployment) -> tuple[bool, str]:
    properties = {f"p{n}": {"type": ["integer", "null"], "minimum": n} for n in range(1150)}
    schema = json.dumps({"properties": properties}, separators=(",", ":"))
    outcomes, mark = Counter[str](), time.monotonic_ns()

    async def one(number: int, channel: grpc.aio.Channel) -> None:
        kind = f"big.n{mark}.n{number}"
        request = types.CreateEventTypeRequest(event_type_id=kind)
        request.event_type.json_schema = schema.replace("p1149", f"q{number}")
        made = await status(
            call(channel, "/hookline.v1.EventTypeService/CreateEventType", request, None, site.root)
        )
        sent = await status(
            call(channel, PUBLISH, batch("hostile", '{"p1": 1}', kind=kind), None, site.publish)
        )
        outcomes[f"{made}/{sent}"] += 1

    async with site.channel() as channel:
        for first in range(0, 400, 8):
            await asyncio.gather(*(one(number, channel) for number in range(first, first + 8)))
    return True, f"{len(schema)} B each: {summary(outcomes)}"


@attack("many-tenants", "suite", "2,000 tenants that publish stay within the ceiling")
async def _many_tenants(site: Deployment) -> tuple[bool, str]:
    outcomes, mark = Counter[str](), f"t{time.monotonic_ns()}"

    async def one(number: int, channel: grpc.aio.Channel) -> None:
        name = f"{mark}-{number}"
        path = "/hookline.v1.TenantService/CreateTenant"
        made = await status(
            call(channel, path, tenants.CreateTenantRequest(tenant_id=name), None, site.root)
        )
        sent = await status(call(channel, PUBLISH, batch(name, "{}"), None, site.root))
        outcomes[f"{made}/{sent}"] += 1

    async with site.channel() as channel:
        for first in range(0, 2000, 40):
            await asyncio.gather(*(one(number, channel) for number in range(first, first + 40)))
    return True, summary(outcomes)


@attack(
    "huge-batches", "suite", "many large publishes at once are refused with RetryInfo, not held"
)
async def _huge_batches(site: Deployment) -> tuple[bool, str]:
    small = message(batch("hostile", *["{}"] * 1000).SerializeToString())
    large = message(batch("hostile", *[json.dumps("x" * 200_000)] * 19).SerializeToString())
    wide = publishing.PublishEventsRequest(tenant="tenants/hostile")
    wide.events.extend(events.Event() for _ in range(3_000_000))
    raw, turn = [small, large, message(wide.SerializeToString())], itertools.count()

    async def one(connection: Http2) -> str:
        stream = connection.request(PUBLISH, token=site.publish)
        await connection.send(stream, raw[next(turn) % 3])
        return await connection.wait(stream)

    return True, summary(await flood(site, 4, 60, one))


@attack("bad-keys", "suite", "100,000 unknown keys do not fill memory or evict known ones")
async def _bad_keys(site: Deployment) -> tuple[bool, str]:
    async def one(connection: Http2) -> str:
        identity = base64.b32encode(os.urandom(8)).decode().strip("=")[:12]
        stream = connection.request(
            PUBLISH, token=f"hk_{identity}_{os.urandom(24).hex()}", end=True
        )
        return await connection.wait(stream)

    return True, summary(await flood(site, 8, 4000, one))


@attack("watches", "suite", "watches that are not read are bounded")
async def _watches(site: Deployment) -> tuple[bool, str]:
    raw = message(deliveries.WatchDeliveriesRequest(tenant="tenants/hostile").SerializeToString())
    await subscribe(site, "hostile", f"w{time.monotonic_ns()}", "http://127.0.0.1:9/", kind="w")
    opened = await asyncio.gather(*(Http2.open(site, initial=0) for _ in range(4)))
    for connection in opened:
        for _ in range(100):
            await connection.send(
                connection.request(
                    "/hookline.v1.DeliveryService/WatchDeliveries", token=site.operate
                ),
                raw,
            )
    end, sent = time.monotonic() + 10, Counter[str]()
    async with site.channel() as channel:
        while time.monotonic() < end:
            sent[
                await status(
                    call(
                        channel,
                        PUBLISH,
                        batch("hostile", *["{}"] * 200, kind="w"),
                        None,
                        site.publish,
                    )
                )
            ] += 1
    ended = Counter(outcome for one in opened for outcome in one.ended.values())
    for connection in opened:
        await connection.close()
    return True, f"400 watches, {summary(sent)} batches of 200; ended: {summary(ended) or 'none'}"


@attack("dying-key", "L4", "a key with 4 s left makes none that outlives it")
async def _dying_key(site: Deployment) -> tuple[bool, str]:
    path = "/hookline.v1.AccessService/CreateApiKey"
    request = access.CreateApiKeyRequest()
    request.api_key.scopes.append(API_KEY_SCOPE_ADMIN)
    request.api_key.expire_time.FromSeconds(int(time.time()) + 4)
    parent = await site.call(path, request, access.CreateApiKeyResponse, site.root)
    request.api_key.ClearField("expire_time")
    child = await site.call(path, request, access.CreateApiKeyResponse, parent.token)
    request.api_key.expire_time.CopyFrom(Timestamp(seconds=int(time.time()) + 3600))
    longer = await site.refusal(path, request, parent.token)
    ends = child.api_key.expire_time.seconds
    await asyncio.sleep(6)
    after = await site.refusal(
        "/hookline.v1.TenantService/ListTenants", tenants.ListTenantsRequest(), child.token
    )
    held = (
        0 < ends <= parent.api_key.expire_time.seconds
        and longer != "OK"
        and after.startswith("UNAUTHENTICATED")
    )
    return (
        held,
        f"child ends {ends - parent.api_key.expire_time.seconds:+} s; an hour: {longer[:60]}; child later: {after[:20]}",
    )


@attack("certificate-kept", "L5", "a new URL needs the certificate again")
async def _certificate_kept(site: Deployment) -> tuple[bool, str]:
    own = site.authority.issue_cert("client.example")
    name = f"c{time.monotonic_ns()}"
    create = subscriptions.CreateSubscriptionRequest(tenant="tenants/hostile", subscription_id=name)
    create.subscription.event_types.append("none")
    target = create.subscription.http
    target.url = "https://one.example.com/"
    target.client_certificate.certificate_chain = own.cert_chain_pems[0].bytes().decode()
    target.client_certificate.private_key = own.private_key_pem.bytes().decode()
    made = await site.refusal(SUBSCRIPTION + "CreateSubscription", create, site.manage)
    outcomes = []
    for paths, url, failover in (
        (["http.url"], "https://evil.example.net/", []),
        (["http.failover_urls"], "", ["https://evil.example.net/"]),
        (["http.url"], "https://one.example.com:8443/", []),
        (["http.url"], "https://one.example.com/other", []),
        (["*"], "https://evil.example.net/", []),
    ):
        update = subscriptions.UpdateSubscriptionRequest()
        update.subscription.name = f"tenants/hostile/subscriptions/{name}"
        update.subscription.event_types.append("none")
        update.subscription.http.url = url
        update.subscription.http.failover_urls.extend(failover)
        update.update_mask.paths.extend(paths)
        answer = await site.refusal(SUBSCRIPTION + "UpdateSubscription", update, site.manage)
        outcomes.append(f"{paths[0]} {url or failover[0]}: {answer[:60]}")
    return made == "OK" and all(
        ": OK" not in one for one in outcomes
    ), f"create {made[:60]}; " + "; ".join(outcomes)


BAD_URLS = (
    "https://example.com:25/", "https://example.com:22/", "https://example.com:6379/", "https://example.com:5432/", "https://example.com:11211/",
    "https://example.com:27017/", "https://example.com:3306/", "https://example.com:0/", "https://example.com:65536/", "https://example.com:9200/",
    "https://[2001:db8::5efe:7f00:1]/", "https://[2a00:1450::5efe:7f00:1]/", "https://[2a00:1450:0:0:0:5efe:7f00:1]/", "https://[2a00:1450::200:5efe:a9fe:a9fe]/",
    "https://[fe80::5efe:10.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://[::ffff:10.0.0.1]/", "https://[::10.0.0.1]/",
    "https://xn--a/", "https://xn--/", "https://xn--a.example.com/", "https://xn--zzzzzzzzzzzz9999999.example.com/", "https://a.xn--a/", "https://XN--A/",
    "https://169.254.169.254/", "https://0x7f.1/", "https://017700000001/", "https://2130706433/", "https://127.1/", "https://0/", "https://10.0.0.1/", "https://[::1%25lo]/",
    "https://1.1.1.1.:443/", "https://example.com\\@evil/", "https://user@example.com/", "https://exa mple.com/", "https://example.com/\r\nx: y", "https://example.com/\u2028", "ftp://example.com/", "https:///", "https://example.com#a", "https://ⓔxample.com/", "https://example。com/",
    "https://127。0。0。1/", "https://１２７.0.0.1/", "https://[::ffff:7f00:1]/", "https://0.0.0.0/", "https://[::]/", "https://255.255.255.255/", "https://224.0.0.1/", "https://[ff02::1]/", "https://100.64.0.1/", "https://192.0.0.8/", "https://198.18.0.1/", "https://[100::1]/", "https://[2001::1]/", "https://[fec0::1]/", "https://[fd00::1]/",
    "https://[2a00:1450::1]:25/", "https://a..b/", "https://-a.com/", "https://" + "a" * 64 + ".com/", "https://" + "a." * 127 + "com/", "https://a_b.com:587/", "https://example.com:465/", "https://example.com:1433/", "https://example.com:2375/", "https://example.com:10250/",
)  # fmt: skip
# Loopback is allowed to this deployment, and the documents allow these two ports.
ALLOWED_HERE = {
    "https://[::ffff:7f00:1]/",
    "https://example.com:2375/",
    "https://example.com:10250/",
    "https://127.1/",
    "https://0x7f.1/",
}


@attack("urls", "L7, L8", "ports of mail and databases, ISATAP, invalid IDNA names are refused")
async def _urls(site: Deployment) -> tuple[bool, str]:
    taken, internal = [], []
    async with site.channel() as channel:
        for number, url in enumerate(BAD_URLS):
            create = subscriptions.CreateSubscriptionRequest(
                tenant="tenants/hostile", subscription_id=f"u{time.monotonic_ns()}-{number}"
            )
            create.subscription.event_types.append("none")
            create.subscription.http.url = url
            answer = await status(
                call(channel, SUBSCRIPTION + "CreateSubscription", create, None, site.manage)
            )
            if answer == "OK":
                taken.append(url)
            elif answer != "INVALID_ARGUMENT":
                internal.append(f"{url}: {answer}")
    surprising = [one for one in taken if one not in ALLOWED_HERE]
    return (
        not surprising and not internal,
        f"{len(BAD_URLS)} tried; taken: {taken}; otherwise: {internal}",
    )


@attack("core-limit", "L6", "no core dump, no secret in the environment, memory unreadable")
async def _core_limit(site: Deployment) -> tuple[bool, str]:
    master, faults = Path(site.environment["HOOKLINE_MASTER_KEY_FILE"]).read_bytes(), []
    for process in family(site.pid):
        place = Path("/proc", str(process))
        limit = re.search(r"Max core file size\s+(\S+)\s+(\S+)", (place / "limits").read_text())
        if not limit or limit.groups() != ("0", "0"):
            faults.append(f"process {process}: core limit {limit and limit.groups()}")
        for name in ("environ", "cmdline"):
            if master.strip() in (place / name).read_bytes():
                faults.append(f"process {process}: the master key is in {name}")
    return not faults, "; ".join(faults) or "limit 0 for each process; no key in environ or cmdline"


class Raw:
    """A receiver that answers as a function says: it is given the request's number on its connection."""

    def __init__(self, answer: Callable[[asyncio.StreamWriter, int], Awaitable[None]]) -> None:
        self.connections = self.requests = 0
        self._answer = answer

    async def __aenter__(self) -> Raw:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, RuntimeError):
            for number in itertools.count():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                size = re.search(r"content-length: (\d+)", head)
                await reader.readexactly(int(size[1]) if size else 0)
                self.requests += 1
                await self._answer(writer, number)
        writer.close()


async def delivery_of(site: Deployment, sent: Any, subscription: str) -> Any:
    """The delivery of a published event for a subscription of the hostile tenant."""
    request = deliveries.ListDeliveriesRequest(tenant="tenants/hostile", page_size=1000)
    path = "/hookline.v1.DeliveryService/ListDeliveries"
    page = await site.call(path, request, deliveries.ListDeliveriesResponse, site.operate)
    wanted = (sent.results[0].name, f"tenants/hostile/subscriptions/{subscription}")
    return next(one for one in page.deliveries if (one.event, one.subscription) == wanted)


@attack("late-answer", "L9", "an unasked answer is never that of the next request")
async def _late_answer(site: Deployment) -> tuple[bool, str]:
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            if number == 0
            else b"HTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\nreal"
        )
        await writer.drain()
        if number == 0:
            await asyncio.sleep(0.1)
            writer.write(b"HTTP/1.1 299 Forged\r\ncontent-length: 6\r\n\r\nforged")
            await writer.drain()

    forged = 0
    async with Raw(answer) as receiver:
        name = f"late{time.monotonic_ns()}"
        await subscribe(site, "hostile", name, f"http://127.0.0.1:{receiver.port}/", kind=name)
        for _ in range(10):
            sent = await site.call(
                PUBLISH,
                batch("hostile", "{}", kind=name),
                publishing.PublishEventsResponse,
                site.publish,
            )
            await asyncio.sleep(0.6)
            delivery = await delivery_of(site, sent, name)
            forged += delivery.last_attempt.http_status == 299
        return (
            forged == 0 and receiver.requests >= 10,
            f"{receiver.requests} requests over {receiver.connections} connections, {forged} took the forged answer",
        )


@attack("receivers", "suite", "endless, slow and broken receivers cost others nothing")
async def _receivers(site: Deployment) -> tuple[bool, str]:
    async def endless_body(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            await writer.drain()

    async def endless_head(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-a: " + b"b" * 1000 + b"\r\n")
            await writer.drain()

    async def trickle(writer: asyncio.StreamWriter, number: int) -> None:
        for one in b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + bytes(100):
            writer.write(bytes((one,)))
            await asyncio.sleep(0.5)

    async def informed(writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * 100)
            await writer.drain()

    async def silent(writer: asyncio.StreamWriter, number: int) -> None:
        await asyncio.sleep(20)

    async with contextlib.AsyncExitStack() as stack:
        found = []
        for answer in (endless_body, endless_head, trickle, informed, silent):
            receiver = await stack.enter_async_context(Raw(answer))
            name = f"r{time.monotonic_ns()}"
            await subscribe(
                site, "hostile", name, f"http://127.0.0.1:{receiver.port}/", kind="receivers"
            )
            found.append(receiver)
        async with site.channel() as channel:
            outcome = Counter(
                [
                    await status(
                        call(
                            channel,
                            PUBLISH,
                            batch("hostile", *["{}"] * 400, kind="receivers"),
                            None,
                            site.publish,
                        )
                    )
                    for _ in range(3)
                ]
            )
        await asyncio.sleep(12)
        return True, f"{summary(outcome)} batches; requests {[one.requests for one in found]}"


@attack(
    "dns-outage",
    "M2",
    "a name of the hosts file is no witness: an outage spends no attempt of another tenant",
)
async def _dns_outage(site: Deployment) -> tuple[bool, str]:
    if os.geteuid() != 0:
        return True, "SKIPPED: a resolver of our own needs root"

    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    mark, text, held = f"n{time.monotonic_ns()}", [], True
    async with Raw(answer) as receiver:
        await subscribe(
            site,
            "hostile",
            f"{mark}-witness",
            f"http://localhost:{receiver.port}/",
            kind=f"{mark}.witness",
        )
        for mode in ("answer", "silent", "servfail"):
            # A name of its own: another's address and connection are kept.
            victim = f"{mark}-{mode}"
            await subscribe(
                site,
                "hostile",
                victim,
                f"http://{victim}.black-box.example:{receiver.port}/",
                kind=f"{mark}.{mode}",
                attempts=1,
            )
            RESOLVER.mode = mode
            try:
                async with site.channel() as channel:
                    sent = await call(
                        channel,
                        PUBLISH,
                        batch("hostile", "{}", kind=f"{mark}.{mode}"),
                        publishing.PublishEventsResponse,
                        site.publish,
                    )
                    for _ in range(20 if mode != "answer" else 3):
                        await call(
                            channel,
                            PUBLISH,
                            batch("hostile", "{}", kind=f"{mark}.witness"),
                            None,
                            site.publish,
                        )
                        await asyncio.sleep(0.5)
                during = await delivery_of(site, sent, victim)
            finally:
                RESOLVER.mode = "answer"
            for _ in range(80):
                after = await delivery_of(site, sent, victim)
                if after.state != 1:
                    break
                await asyncio.sleep(0.5)
            text.append(
                f"{mode}: {during.attempt_count} attempts in the outage, state {after.state} after {after.attempt_count}"
            )
            held &= after.state == 2 and (mode == "answer" or during.state == 1)
    return held, "; ".join(text) + " (2: SUCCEEDED, 3: EXHAUSTED)"


@attack("nul-certificate", "M3", "a NUL in a SAN authenticates no caller")
async def _nul_certificate(site: Deployment) -> tuple[bool, str]:
    clients = site.directory / "clients.toml"
    clients.write_text('[[client]]\ndns = "admin.example.org"\nscopes = ["admin"]\ntenant = "-"\n')
    port = free_ports(2)
    environment = site.environment | {
        "HOOKLINE_LISTEN": f"127.0.0.1:{port}", "HOOKLINE_WORKERS": "1",
        "HOOKLINE_TLS_CERT": str(site.directory / "tls.crt"), "HOOKLINE_TLS_KEY": str(site.directory / "tls.key"),
        "HOOKLINE_TLS_CLIENT_CA": str(site.directory / "ca.crt"), "HOOKLINE_TLS_CLIENTS": str(clients),
    }  # fmt: skip
    log = site.directory / "mtls.log"
    with log.open("w") as output:
        process = serve(environment, output)
    try:
        await asyncio.to_thread(wait_until_ready, log, process)
        outcomes = {}
        for name in (
            "admin.example.org",
            "admin.example.org\0.evil.com",
            "admin.example.org\0",
            "\0admin.example.org",
            "admin.example.org\n",
            "admin.example.org.",
            "ADMIN.example.org",
            "*.example.org",
        ):
            key, chain = signed(site.authority, name)
            credentials = grpc.ssl_channel_credentials(site.authority.cert_pem.bytes(), key, chain)
            async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
                outcomes[name] = await status(
                    call(
                        channel,
                        "/hookline.v1.TenantService/ListTenants",
                        tenants.ListTenantsRequest(),
                        None,
                        "",
                    )
                )
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)
    good = outcomes.pop("admin.example.org")
    return good == "OK" and "OK" not in outcomes.values(), f"the true name {good}; {outcomes!r}"


def signed(authority: trustme.CA, name: str) -> tuple[bytes, bytes]:
    """A key and a certificate of that DNS name, written as it stands."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    own = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    raw = name.encode()
    inner = bytes((0x82, len(raw))) + raw
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([])).issuer_name(own.subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(own.not_valid_before_utc).not_valid_after(own.not_valid_after_utc)
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), bytes((0x30, len(inner))) + inner), critical=True)
        .sign(signer, SHA256())
    )  # fmt: skip
    return key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    ), certificate.public_bytes(Encoding.PEM)


@attack("audit-insert", "M4", "`audit verify` fails on an inserted, changed or removed entry")
async def _audit_insert(site: Deployment) -> tuple[bool, str]:
    before = site.hookline("audit", "verify")
    connection = await asyncpg.connect(site.url)
    outcomes: dict[str, object] = {"untouched": before.returncode}
    try:
        tables = [
            row[0]
            for row in await connection.fetch(
                "SELECT tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema') AND tablename LIKE '%audit%'"
            )
        ]
        table = next(one for one in tables if one in ("audit_entries", "audit_log", "audit"))
        columns = [
            row[0]
            for row in await connection.fetch(
                "SELECT column_name FROM information_schema.columns WHERE table_name = $1 AND is_generated = 'NEVER' AND is_identity = 'NO'",
                table,
            )
        ]
        head = await connection.fetchval(f"SELECT max(sequence) FROM {table}")
        others = ", ".join(one for one in columns if one != "sequence")
        insert = f"INSERT INTO {table} (sequence, {others}) SELECT %s, {others} FROM {table} WHERE sequence = {head} LIMIT 1"
        for what, statement in {
            "behind the head": insert % (head + 232),
            "next": insert % (head + 1),
            "before the first": insert % -5,
            "removed": f"DELETE FROM {table} WHERE sequence = {head // 2}",
            "last three removed": f"DELETE FROM {table} WHERE sequence > {head - 3}",
            "changed": f"UPDATE {table} SET principal = 'apiKeys/x' WHERE sequence = {head // 2}",
        }.items():
            outcomes[what] = await verified_after(site, connection, table, statement)
    finally:
        await connection.close()
    held = outcomes["untouched"] == 0 and all(
        code not in (0, "refused") for what, code in outcomes.items() if what != "untouched"
    )
    return held, f"exit codes of verify: {outcomes}"


async def verified_after(
    site: Deployment, connection: asyncpg.Connection, table: str, statement: str
) -> object:
    """Change the log in place as its owner can, verify, and put back what was there."""
    await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
    await connection.execute(f"CREATE TEMP TABLE saved AS TABLE {table}")
    try:
        try:
            await connection.execute(statement)
        except asyncpg.PostgresError as error:
            return f"refused: {error}"
        return (await asyncio.to_thread(site.hookline, "audit", "verify")).returncode
    finally:
        columns = ", ".join(
            row[0]
            for row in await connection.fetch(
                "SELECT column_name FROM information_schema.columns WHERE table_name = $1 AND is_generated = 'NEVER' ORDER BY 1",
                table,
            )
        )
        async with connection.transaction():
            await connection.execute(f"DELETE FROM {table}")
            await connection.execute(
                f"INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM saved"
            )
        await connection.execute("DROP TABLE saved")
        await connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER ALL")


# ------------------------------------------------------------------------------------ the measuring


@dataclass
class Row:
    name: str
    row: str
    workers: int
    held: bool
    expected: str
    observed: str
    seconds: float
    rss_before: float
    rss_peak: float
    rss_after: float
    rss_all: float
    cpu: float
    ran: float
    waited: float
    p99: float
    worst: float
    calls: int
    failures: int
    failed: str
    cancelled: int
    fresh: str
    delivery_p99: float
    recovered: bool
    exceeded: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.held and not self.exceeded

    def line(self) -> str:
        verdict = "held" if self.passed else "FAULT"
        if self.observed.startswith("SKIPPED"):
            verdict = "skipped"
        over = f"\n        exceeded: {'; '.join(self.exceeded)}" if self.exceeded else ""
        return (
            f"{self.row:7} {self.name:24} w{self.workers} {verdict:8} {self.seconds:5.1f} s  "
            f"RSS {self.rss_before:.0f}>{self.rss_peak:.0f}>{self.rss_after:.0f} (all {self.rss_all:.0f}) MB  cpu {self.cpu:.1f} (loops ran {self.ran:.1f}, waited for a processor {self.waited:.1f}) s  "
            f"p99 {self.p99 * 1e3:.0f} max {self.worst * 1e3:.0f} ms of {self.calls}, delivery {self.delivery_p99 * 1e3:.0f} ms  "
            f"failed [{self.failed}] new connections [{self.fresh}] recovered {self.recovered}\n"
            f"        expected: {self.expected}\n        observed: {self.observed}{over}"
        )


async def run(site: Deployment, observed: Observed, names: list[str]) -> list[Row]:
    rows = []
    os.nice(5)  # the service and the observer come first
    for name in names:
        row, expected, function, limits = ATTACKS[name]
        start = time.monotonic()
        try:
            async with asyncio.timeout(180):
                held, text = await function(site)
        except (
            grpc.aio.AioRpcError,
            OSError,
            TimeoutError,
            asyncpg.PostgresError,
            StopIteration,
        ) as error:
            held, text = False, f"{type(error).__name__}: {str(error)[:300]}"
        end = time.monotonic()
        recovered = await recovery(observed)
        rows.append(
            measured(name, row, site.workers, held, expected, text, observed, start, end, recovered)
        )
        rows[-1].exceeded = limits.exceeded(rows[-1])
        print(rows[-1].line(), flush=True)  # noqa: T201
        if not family(site.pid):
            print("the service has ended", flush=True)  # noqa: T201
            break
    return rows


async def recovery(observed: Observed) -> bool:
    """Whether within 20 s the known publisher has had two good seconds."""
    for _ in range(10):
        start = time.monotonic()
        await asyncio.sleep(2)
        calls = observed.within("call", start, start + 1.5)
        if len(calls) > CALLS_PER_S and all(
            one["code"] == "OK" and one["s"] < 0.5 for one in calls
        ):
            return True
    return False


def measured(
    name: str, row: str, workers: int, held: bool, expected: str, text: str,
    observed: Observed, start: float, end: float, recovered: bool,
) -> Row:  # fmt: skip
    calls, memory = observed.within("call", start, end), observed.within("rss", start, end + 1)

    def total(what: str) -> float:
        return float(memory[-1][what] - memory[0][what]) if memory else 0

    before = observed.within("rss", start - 1, start)
    later = [one for one in observed.lines if one["kind"] == "rss"][-1:]
    failed = Counter(
        f"{one['code']} {one['words'][:70]}".strip() for one in calls if one["code"] != "OK"
    )
    fresh = observed.within("fresh", start, end)
    bare = sum(one["code"] == "CANCELLED" for one in calls + fresh)
    return Row(
        name, row, workers, held, expected, text, end - start,
        max((one["each"] for one in before), default=0), max((one["each"] for one in memory), default=0),
        later[0]["each"] if later else 0, max((one["all"] for one in memory), default=0),
        total("cpu"), total("ran"), total("waited"),
        percentile([one["s"] for one in calls], 0.99), max((one["s"] for one in calls), default=float("nan")),
        len(calls), failed.total(), summary(failed), bare,
        f"{sum(one['code'] == 'OK' for one in fresh)}/{len(fresh)}, max {max((one['s'] for one in fresh), default=0):.1f} s",
        percentile([one["s"] for one in observed.within("delivery", start, end)], 0.99), recovered,
    )  # fmt: skip


async def trial(url: str, workers: int, names: list[str]) -> list[Row]:
    observed = Observed()
    async with observed.running() as begin:
        with deployed(url, workers) as site:
            await prepare(site, observed.port)
            begin(site)
            await recovery(observed)
            rows = await run(site, observed, names)
    print(f"{workers} workers: {'; '.join(site.notes)}", flush=True)  # noqa: T201
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--workers", type=int, action="append", help="default: 1, then 2")
    parser.add_argument("--observe", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.observe:
        asyncio.run(Observer({}).run())
        return 0
    unknown = set(arguments.attacks) - set(ATTACKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if os.geteuid() == 0:
        RESOLVER.start()
    rows: list[Row] = []
    for workers in arguments.workers or [1, 2]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, embedded(runner) as url:
            rows += runner.run(trial(url, workers, arguments.attacks or list(ATTACKS)))
    return int(not all(row.passed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
