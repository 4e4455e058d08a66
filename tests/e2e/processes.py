"""Processes of Hookline for the end-to-end tests: start, output, signals, end, clean-up."""

import os
import pathlib
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Self

START_TIMEOUT_S = 50.0
STOP_TIMEOUT_S = 45.0
HOOKLINE = (sys.executable, "-P", "-m", "hookline_service")


def environment(**variables: str) -> dict[str, str]:
    """Our environment without settings of Hookline's and telemetry's: a test decides on them.

    A node is one process, unless the test says otherwise: it is that process that is killed.
    """
    decided = ("HOOKLINE_", "OTEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(decided)}
    ours = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    return {**kept, **ours, "HOOKLINE_WORKERS": "1", **variables}


def run_hookline(
    *arguments: str, timeout_s: float = 60.0, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `variables` are added to its environment."""
    return subprocess.run(
        [*HOOKLINE, *arguments],
        env=environment(**(variables or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


class Node:
    """One `hookline serve` or `hookline dev`, as a person at a terminal has it."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [*HOOKLINE, *command, "--listen", "127.0.0.1:0"],
            env=environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it if it still runs, and let go of its pipes."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def wait_for_line(self, wanted: str) -> None:
        """Return once it has printed a line; AssertionError: it ended without, or not in time."""
        while True:
            line = self._queue.get(timeout=START_TIMEOUT_S)
            assert line is not None, f"ended without {wanted!r}:\n" + "\n".join(self.lines)
            self.lines.append(line)
            if line == wanted:
                return

    def ready(self) -> Self:
        """Wait until it serves."""
        self.wait_for_line("ready")
        return self

    @property
    def target(self) -> str:
        """Where it serves gRPC."""
        match = re.search(r"serves gRPC on (\S+)", "\n".join(self.lines))
        assert match is not None
        return match[1]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for its end; the exit code. What it printed is in `lines`."""
        code = self.process.wait(STOP_TIMEOUT_S)
        while (line := self._queue.get(timeout=STOP_TIMEOUT_S)) is not None:
            self.lines.append(line)
        return code

    def stop(self) -> int:
        """Stop it as an operator does; the exit code."""
        self.signal(signal.SIGTERM)
        return self.ended()

    @property
    def text(self) -> str:
        """All that was read of its output."""
        return "\n".join(self.lines)


def workers(node: Node) -> list[int]:
    """The processes of a node that is several, as the kernel lists them."""
    with suppress(FileNotFoundError):
        text = pathlib.Path(
            f"/proc/{node.process.pid}/task/{node.process.pid}/children"
        ).read_text()
        return [int(pid) for pid in text.split()]
    return []


class Dev(Node):
    """One `hookline dev`."""

    def __init__(self, data_dir: pathlib.Path, *arguments: str, **variables: str) -> None:
        super().__init__(["dev", "--data-dir", str(data_dir), *arguments], variables)
        self.data_dir = data_dir


def postgres_processes(data_dir: pathlib.Path) -> list[int]:
    """The postmasters that run for a data directory, by where they work, as root and as a user."""
    clusters = {data_dir / "postgres"}
    pointers = [
        path for path in data_dir.glob("*") if path.is_file() and path.stat().st_size < 4096
    ]
    for pointer in pointers:
        text = pointer.read_text(encoding="utf-8", errors="replace").strip()
        if text.startswith("/"):
            clusters.add(pathlib.Path(text))
    parents = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            works_in = (process / "cwd").readlink()
            name, _, rest = (process / "stat").read_text().partition(" (")[2].rpartition(") ")
            if works_in in clusters and name == "postgres":
                parents[int(process.name)] = int(rest.split()[1])
    return sorted(pid for pid, parent in parents.items() if parent not in parents)


@contextmanager
def data_directory() -> Iterator[pathlib.Path]:
    """A path for a data directory that is not made yet, as `dev` finds it on a fresh machine.

    Not pytest's: those are 0700, and as root the user of Postgres could not pass through.
    """
    path = pathlib.Path(tempfile.gettempdir()) / f"hookline-e2e-{secrets.token_hex(6)}"
    try:
        yield path
    finally:
        for process in postgres_processes(path) if path.exists() else ():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGQUIT)
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def running_dev(
    data_dir: pathlib.Path, arguments: Sequence[str] = (), **variables: str
) -> Iterator[Dev]:
    """A `hookline dev` that serves; killed at the end if the test did not stop it."""
    with Dev(data_dir, *arguments, **variables) as dev:
        yield dev.ready()
