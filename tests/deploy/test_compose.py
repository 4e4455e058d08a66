"""deploy/compose.yaml, run by podman-compose: Postgres, the migration, and Hookline over TLS.

The images of others are not reached here: Postgres is the stand-in of tests/deploy/postgres, and
what watches Hookline is left out.
"""

from __future__ import annotations

import asyncio
import pathlib
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.architecture.repository import ROOT
from tests.deploy.engine import ENGINE, IMAGE, POSTGRES, engine
from tests.e2e.processes import run_hookline
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(not ENGINE, reason="`make image-check` runs it"),
    pytest.mark.timeout(240),
]

SERVICES = ("postgres", "migrate", "hookline")
PORT = 50051
MISSING = [
    path
    for path in (
        "/usr/bin/podman-compose",
        "/usr/lib/podman/netavark",
        "/usr/lib/podman/aardvark-dns",
    )
    if not pathlib.Path(path).exists()
]


class Composed:
    """The services of compose.yaml that can run here, from a copy of its folder."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._project = f"hookline-{secrets.token_hex(4)}"
        for name in ("compose.yaml", "make-secrets", "collector.yaml"):
            shutil.copy(ROOT / "deploy" / name, directory)
        subprocess.run([directory / "make-secrets"], check=True, capture_output=True)
        pins = {
            "POSTGRES_IMAGE": POSTGRES,
            **dict.fromkeys(("PYTHON_IMAGE", "COLLECTOR_IMAGE", "JAEGER_IMAGE"), "none"),
            **dict.fromkeys(("PROMETHEUS_IMAGE", "GRAFANA_IMAGE"), "none"),
        }
        with (directory / ".env").open("a") as file:
            file.writelines(f"{name}={image}\n" for name, image in pins.items())
        engine("tag", IMAGE, "localhost/hookline:latest")

    def compose(self, *arguments: str) -> str:
        """Run podman-compose; what it printed."""
        done = subprocess.run(
            ["podman-compose", "--podman-path", ENGINE, "-p", self._project, *arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )
        return done.stdout + done.stderr

    def container(self, service: str) -> str:
        """The name of a service's container."""
        return f"{self._project}_{service}_1"

    def exit_code(self, service: str) -> int:
        """Of its container, once it has ended."""
        done = engine("inspect", "--format", "{{.State.ExitCode}}", self.container(service))
        return int(done.stdout)

    def close(self) -> None:
        """Show what was printed, and remove everything."""
        for service in SERVICES:
            done = engine("logs", self.container(service), check=False)
            print(f"--- {service}", (done.stdout + done.stderr)[-3_000:], sep="\n")  # noqa: T201
        self.compose("down", "--volumes", "--timeout", "50")


@pytest.fixture
def composed(tmp_path: pathlib.Path) -> Iterator[Composed]:
    if MISSING:
        pytest.skip(
            f"{', '.join(MISSING)}: missing; Debian's podman-compose, netavark, aardvark-dns"
        )
    with socket.socket() as port:
        if port.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"port {PORT}, which compose.yaml publishes, is taken here")
    made = Composed(tmp_path)
    try:
        yield made
    finally:
        made.close()


async def test_it_serves_over_tls_and_ends_cleanly(composed: Composed) -> None:
    printed = await asyncio.to_thread(composed.compose, "up", "--no-build", "-d", *SERVICES)
    healthy = ("healthcheck", "run", composed.container("hookline"))

    def is_healthy() -> bool:
        return engine(*healthy, check=False).returncode == 0

    await until(is_healthy, f"it serves; {printed}", within_s=90)
    assert composed.exit_code("migrate") == 0
    create = ("hookline", "keys", "create", "--scope", "admin")
    token = engine("exec", composed.container("hookline"), *create).stdout.strip()
    ca_file = str(composed.directory / "secrets" / "ca.crt")
    asked = ("status", "--server", f"localhost:{PORT}")
    shown = run_hookline(*asked, "--ca", ca_file, variables={"HOOKLINE_API_KEY": token})
    assert shown.returncode == 0, shown.stderr
    assert "nodes    " in shown.stdout
    assert "it may serve TLS" in run_hookline(*asked).stderr, "and nothing in plaintext"
    engine("stop", "--time", "50", composed.container("hookline"))
    assert composed.exit_code("hookline") == 0
