"""Run the blocks of a page in order against a running service.

`console` blocks are commands with their output. `console background` holds a command that keeps
running; its output is compared at the end of the page, because later commands make it print. A
`python` block that begins with `# NAME.py` is saved under that name for a later command. `sh`
blocks are not run: they change a machine, or need one that the tests do not have.
"""

import os
import pathlib
import queue
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from hookline_service.api.middleware.methods import METHODS, Effect
from tests.docs.pages import Block, Page
from tests.docs.transcript import Meanings, Step, steps
from tests.e2e.processes import Dev, environment
from tests.waiting import until

TIMEOUT_S = 60.0
SETTLES_WITHIN_S = 20.0
SHOWN_PORT = "50051"
RECEIVER_PORTS = ("8080", "8081", "8082")
# Repeated until the output matches: these commands read state that changes asynchronously.
_READING = "|".join(
    name.rpartition("/")[2] for name, method in METHODS.items() if method.effect is Effect.READ
)
_READS = re.compile(rf"^hookline (event|status)|/({_READING})\s*$")
_FAILS = ("ERROR:", "hookline: ")
# Makefile targets that only run a command.
_TARGETS = {"make demo": "hookline demo"}


class Background:
    """A command that keeps running; `printed` is its output so far."""

    def __init__(self, step: Step, command: str, cwd: pathlib.Path, env: dict[str, str]) -> None:
        self.step = step
        self.printed = ""
        self._first = queue.Queue[str]()
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.printed += line
            self._first.put(line)

    def wait_for_a_line(self) -> None:
        """Return after the first line of output."""
        self._first.get(timeout=TIMEOUT_S)


class Terminal:
    """The terminals in which one page is run."""

    def __init__(self, dev: Dev, grpcurl: pathlib.Path, directory: pathlib.Path) -> None:
        self._dev = dev
        self._directory = directory
        self._stack = ExitStack()
        self._background: list[Background] = []
        real_ports = {SHOWN_PORT: dev.target.rpartition(":")[2]}
        real_ports |= {port: str(_free_port()) for port in RECEIVER_PORTS}
        self._meanings = Meanings(real_ports)
        programs = directory / "bin"
        programs.mkdir()
        (programs / "grpcurl").symlink_to(grpcurl)
        python = shlex.quote(sys.executable)
        for name, command in (("hookline", f"{python} -P -m hookline_service"), ("python", python)):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            program.chmod(0o755)
        self._env = environment(
            PATH=os.pathsep.join([str(programs), os.environ["PATH"]]),
            HOOKLINE_SERVER=dev.target,
            HOOKLINE_DATA_DIR=str(dev.data_dir),
        )
        # The default data directory of the page's `hookline dev`.
        (directory / ".hookline").symlink_to(dev.data_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def follow(self, page: Page) -> None:
        """Run a whole page; raise AssertionError if an output differs from what the page shows."""
        for block in page.blocks():
            if block.language == "console":
                await self._type(block)
            elif block.language == "python":
                self._save(block)
        for running in self._background:
            await until(
                lambda running=running: self._fits(running.step, running.printed),
                f"{running.step.place} shows what it prints:\n{running.printed}",
                within_s=SETTLES_WITHIN_S,
            )

    def _save(self, block: Block) -> None:
        match = re.match(r"# (\w+\.py)\n", block.text)
        assert match is not None, (
            f"{block.place}: a program must begin with a comment of its file name"
        )
        program = self._directory / match[1]
        program.write_text(self._meanings.real(block.text), encoding="utf-8")

    async def _type(self, block: Block) -> None:
        for step in steps(block):
            if step.command.startswith("hookline dev"):
                assert self._fits(step, self._dev.text), self._difference(step, self._dev.text)
            elif "background" in block.info.split():
                self._start(step)
            else:
                await self._run(step)

    def _start(self, step: Step) -> None:
        command = self._meanings.real(step.command)
        running = Background(step, command, self._directory, self._env)
        self._background.append(self._stack.enter_context(running))
        running.wait_for_a_line()

    async def _run(self, step: Step) -> None:
        command = self._meanings.real(_TARGETS.get(step.command, step.command))
        printed = ""

        def shows_it() -> bool:
            nonlocal printed
            printed = self._printed_by(step, command)
            return self._fits(step, printed)

        if _READS.search(step.command):
            try:
                await until(shows_it, step.place, within_s=SETTLES_WITHIN_S)
            except AssertionError:
                raise AssertionError(self._difference(step, printed)) from None
        else:
            assert shows_it(), self._difference(step, printed)

    def _printed_by(self, step: Step, command: str) -> str:
        result = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self._directory,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        must_fail = step.output.startswith(_FAILS)
        assert (result.returncode != 0) == must_fail, self._difference(step, result.stdout)
        return result.stdout

    def _fits(self, step: Step, printed: str) -> bool:
        return self._meanings.fits(step.output, printed)

    def _difference(self, step: Step, printed: str) -> str:
        return f"{step.place}\n$ {step.command}\n--- shows\n{step.output}--- prints\n{printed}"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def terminal(dev: Dev, grpcurl: pathlib.Path, directory: pathlib.Path) -> Iterator[Terminal]:
    """Open a terminal in its own directory; end the commands that it started on exit."""
    with Terminal(dev, grpcurl, directory) as typed:
        yield typed
