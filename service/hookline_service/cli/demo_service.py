"""The service of the demo: a `hookline dev` with its own process and data directory.

However the demo ends, the process is stopped and its database removed, even if the process had to
be killed and its Postgres still runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Self

from hookline_service.cli.failure import CommandError
from hookline_service.store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from hookline_service.telemetry.trace_tree import ShownSpan, span_of_line

_START_TIMEOUT_S = 45.0
_STOP_TIMEOUT_S = 20.0
_ADDRESS = re.compile(r"serves gRPC on (\S+)")
_KEPT_LINES = 40
_TRACING = {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "50"}
"""The service writes its spans as lines of its output."""


class DemoService:
    """A running service; leaving the context stops it and removes its data."""

    def __init__(self) -> None:
        self.spans: list[ShownSpan] = []
        """The spans that it has written."""
        # Not created here: as root, `dev` creates it readable for the user of its Postgres.
        self.data_dir = Path(tempfile.gettempdir()) / f"hookline-demo-{secrets.token_hex(6)}"
        self.target = ""
        self.exit_code: int | None = None
        """None while it runs."""
        self._process: Process | None = None
        self._output: deque[str] = deque(maxlen=_KEPT_LINES)
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await _uncancelled(self._stop())
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await _uncancelled(self._stop())

    async def _start(self) -> None:
        # No setting of the environment changes the demo.
        foreign = ("HOOKLINE_", "OTEL_")
        environ = {name: text for name, text in os.environ.items() if not name.startswith(foreign)}
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "hookline_service", "dev", "--stop-with-input"),
            *("--listen", "127.0.0.1:0", "--data-dir", str(self.data_dir)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            env=environ | {"PYTHONUNBUFFERED": "1", **_TRACING},
            start_new_session=True,  # a terminal's Ctrl-C is for the demo, which then stops it
        )
        self._reading = asyncio.create_task(self._read(process))
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait(
            {self._reading, ready}, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        if not self._ready.is_set():
            what = "ended" if self._reading.done() else f"is not ready in {_START_TIMEOUT_S:g} s"
            raise CommandError(f"the service {what}; its output:\n{self.output()}", code=1)

    async def _read(self, process: Process) -> None:
        """Keep its output until it ends."""
        while process.stdout is not None and (line := await process.stdout.readline()):
            text = line.decode("utf-8", "replace").rstrip()
            if (span := span_of_line(text)) is not None:
                self.spans.append(span)
                continue
            self._output.append(text)
            if match := _ADDRESS.search(text):
                self.target = match[1]
            if text == "ready":
                self._ready.set()

    def output(self) -> str:
        """Return the last lines of its output."""
        return "\n".join(f"    {line}" for line in self._output) or "    (nothing)"

    async def _stop(self) -> None:
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    self.exit_code = await process.wait()
            except TimeoutError:
                process.kill()
                self.exit_code = await process.wait()
            if self._reading is not None:
                self._reading.cancel()
        if self.data_dir.exists():
            await self._remove_data()

    async def _remove_data(self) -> None:
        """Remove the directory, and the database, which as root may be elsewhere."""
        postgres = EmbeddedPostgres(self.data_dir)
        with contextlib.suppress(EmbeddedPostgresError):
            await postgres.start()
            await postgres.remove()
        shutil.rmtree(self.data_dir, ignore_errors=True)


async def _uncancelled(work: Coroutine[None, None, None]) -> None:
    """Await a coroutine to its end even when cancelled, and raise the cancellation then."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
