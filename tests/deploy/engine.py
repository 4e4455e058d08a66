"""The container engine of `make image-check`: containers as a deployment runs them."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
from collections.abc import Sequence
from typing import Any

ENGINE = os.environ.get("HOOKLINE_TEST_ENGINE", "")
IMAGE = "localhost/hookline:check"
POSTGRES = "localhost/hookline-postgres:check"
USER = 10001

LOCKED = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--network=host",
)
"""As deploy/compose.yaml and deploy/kubernetes have it; stricter: not even /tmp can be written."""


def free_ports(count: int) -> list[int]:
    """Ports that are free, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def engine(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the engine to its end."""
    done = subprocess.run(
        [ENGINE, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert not check or done.returncode == 0, f"{arguments[0]}: {done.stdout}{done.stderr}"
    return done


class Container:
    """One container that runs in the background."""

    def __init__(self, *arguments: str) -> None:
        self.id = engine("run", "--detach", *arguments).stdout.strip()

    def inspect(self) -> dict[str, Any]:
        """What the engine says of it."""
        (found,) = json.loads(engine("inspect", self.id).stdout)
        assert isinstance(found, dict)
        return found

    def exec(self, *command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return engine("exec", self.id, *command, check=check)

    def is_healthy(self) -> bool:
        """Whether the image's own health check succeeds."""
        return engine("healthcheck", "run", self.id, check=False).returncode == 0

    def logs(self) -> str:
        """What it printed."""
        done = engine("logs", self.id, check=False)
        return done.stdout + done.stderr

    def processes(self) -> list[pathlib.Path]:
        """The /proc directories of its first process and that one's children."""
        first = pathlib.Path("/proc", str(self.inspect()["State"]["Pid"]))
        children = first.joinpath("task", first.name, "children").read_text().split()
        return [first, *(pathlib.Path("/proc", pid) for pid in children)]

    def stop(self) -> int:
        """Stop it by its stop signal; its exit code. 137: it had to be killed."""
        engine("stop", "--time", "50", self.id)
        code: int = self.inspect()["State"]["ExitCode"]
        return code

    def remove(self) -> None:
        """Leave nothing of it."""
        engine("rm", "--force", "--time", "1", "--volumes", self.id, check=False)


def run_once(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a container to its end."""
    return engine("run", "--rm", *arguments, check=False)


def variables(environ: dict[str, str]) -> Sequence[str]:
    """The engine's arguments for an environment."""
    return [f"--env={name}={value}" for name, value in environ.items()]
