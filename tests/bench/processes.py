"""The processes of a run: their standard error goes to a log, and they end with the run.

Their output is a protocol of lines. A process that ends too early fails the run, with
the log's path and its last lines.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

START_S = 60.0
END_S = 60.0
_LINE_BYTES = 1 << 26
_LOG_LINES = 15


class BenchError(Exception):
    """The run is invalid."""


class Child:
    """A Python process that reads commands and prints lines."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self.log = log

    @classmethod
    async def start(
        cls, log: Path, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> Self:
        """Start `python -m …` with its standard error in the log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *arguments,
                env=environ,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=_LINE_BYTES,
            )
        return cls(process, log)

    @property
    def pid(self) -> int:
        """The pid of the process."""
        return self._process.pid

    async def line(self, within_s: float = START_S) -> str:
        """Return the next line; raise `BenchError` if the process ended."""
        if self._process.stdout is None:
            raise TypeError("started without a pipe")
        async with asyncio.timeout(within_s):
            line = await self._process.stdout.readline()
        if not line:
            await self._process.wait()
            raise self._ended()
        return line.decode().strip()

    async def ask(self, command: str) -> str:
        """Send a command and return the answer."""
        if self._process.stdin is None:
            raise TypeError("started without a pipe")
        self._process.stdin.write(command.encode() + b"\n")
        return await self.line()

    async def result(self) -> str:
        """Return its output up to its end; raise `BenchError` if it fails."""
        output, _ = await self._process.communicate()
        if self._process.returncode:
            raise self._ended()
        return output.decode()

    def check(self) -> None:
        """Raise `BenchError` if it has ended."""
        if self._process.returncode is not None:
            raise self._ended()

    async def end(self) -> None:
        """End it by SIGTERM and the end of its input; kill it if that fails."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(END_S):
                await self._process.communicate()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _ended(self) -> BenchError:
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return BenchError(
            f"a process ended with {self._process.returncode}; its log is {self.log}:\n"
            + "\n".join(f"  {line}" for line in lines)
        )


@dataclass(frozen=True)
class Node:
    """One `hookline serve` with all its worker processes."""

    process: Child
    address: str


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The settings shared by all nodes of a run."""

    database_url: str
    workers: int
    logs: Path
    telemetry: Mapping[str, str] = field(default_factory=dict)
    """`OTEL_*` of every node; empty if nothing is exported."""
    master_key: str = base64.b64encode(secrets.token_bytes(32)).decode()

    async def start_node(self, number: int) -> Node:
        """Start a node, and wait until it serves."""
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HOOKLINE_", "OTEL_"))
        } | {
            **self.telemetry,
            "HOOKLINE_DATABASE_URL": self.database_url,
            "HOOKLINE_MASTER_KEY": self.master_key,
            "HOOKLINE_AUTH": "off",
            "HOOKLINE_LISTEN": "127.0.0.1:0",
            "HOOKLINE_EGRESS_ALLOW": "127.0.0.0/8",
            "HOOKLINE_WORKERS": str(self.workers),
        }
        log = self.logs / f"node-{number}.log"
        process = await Child.start(log, "hookline_service", "serve", environ=environ)
        address = ""
        try:
            while (line := await process.line()) != "ready":
                if " serves gRPC on " in line:
                    address = line.rpartition(" ")[2]
        except BaseException:
            await process.end()
            raise
        return Node(process, address)


async def start_receiver(
    logs: Path, counters: Path, secret: str, groups: Sequence[Mapping[str, object]]
) -> tuple[Child, list[list[int]]]:
    """Start the receivers; return their ports, one list per group."""
    spec = json.dumps({"counters": str(counters), "secret": secret, "groups": groups})
    process = await Child.start(logs / "receiver.log", "tests.bench.receiver", spec)
    ports: list[list[int]] = json.loads(await process.line())
    return process, ports


SAMPLED = {"unsampled": "0", "10": "0.1", "100": "1"}
"""The variants of telemetry, with the sampling ratio of each."""


async def start_collector(logs: Path, mode: str) -> tuple[Child, dict[str, str]]:
    """Start a collector; return it, and the variables of nodes that export to it."""
    process = await Child.start(logs / "collector.log", "tests.bench.collector")
    port = int(await process.line())
    return process, {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": SAMPLED[mode],
        "OTEL_BSP_MAX_QUEUE_SIZE": "100000",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
    }
