"""The image of deploy/Dockerfile, built and run by `make image-check`; no part of `make test`.

As a deployment has it: user 10001, a read-only root without a writable directory, no capability,
no new privileges, the engine's seccomp profile, secrets in files, TLS. Postgres runs beside it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pathlib
import re
import secrets
import urllib.request
from collections.abc import Iterator

import pytest

from hookline import HooklineClient
from hookline.tls import Tls
from hookline.v1.event_pb2 import Event
from hookline.v1.subscription_service_pb2 import CreateSubscriptionRequest
from hookline_service.cli.receiver import Arrival, Receiver
from tests.certificates import Authority
from tests.deploy.engine import (
    ENGINE,
    IMAGE,
    LOCKED,
    POSTGRES,
    USER,
    Container,
    engine,
    free_ports,
    run_once,
    variables,
)
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(not ENGINE, reason="`make image-check` runs it"),
    pytest.mark.timeout(240),
]

PASSWORD = secrets.token_hex(16)
KEY = base64.b64encode(secrets.token_bytes(32)).decode()
MOUNTED = "/etc/hookline"


class Deployment:
    """A Postgres, the secrets, and containers of the image."""

    def __init__(self, directory: pathlib.Path) -> None:
        directory.chmod(0o711)
        self.directory = directory / "secrets"
        self.directory.mkdir(mode=0o500)
        self._containers: list[Container] = []
        port, self.scrape_port = free_ports(2)
        url = f"postgresql://hookline:{PASSWORD}@127.0.0.1:{port}/hookline"
        authority = Authority(self.directory)
        authority.issue("tls", "hookline.hookline")
        self.secret("database-url", url)
        self.secret("master-key", KEY)
        for path in self.directory.iterdir():
            os.chown(path, USER, USER)
            path.chmod(0o400)
        os.chown(self.directory, USER, USER)
        self.ca_file = authority.file
        (directory / "password").write_text(PASSWORD)
        self.postgres = self._started(
            "--network=host",
            f"--volume={directory / 'password'}:/run/secrets/password:ro",
            *variables(
                {
                    "POSTGRES_USER": "hookline",
                    "POSTGRES_DB": "hookline",
                    "POSTGRES_PASSWORD_FILE": "/run/secrets/password",
                }
            ),
            POSTGRES,
            *("postgres", "-c", f"port={port}"),
        )
        self._port = port
        self.environ = {
            "HOOKLINE_DATABASE_URL_FILE": f"{MOUNTED}/database-url",
            "HOOKLINE_MASTER_KEY_FILE": f"{MOUNTED}/master-key",
            "HOOKLINE_TLS_CERT": f"{MOUNTED}/tls.pem",
            "HOOKLINE_TLS_KEY": f"{MOUNTED}/tls.key",
            "HOOKLINE_SERVER_CA": f"{MOUNTED}/ca.pem",
            "HOOKLINE_SERVER_NAME": "hookline.hookline",
            "HOOKLINE_EGRESS_ALLOW": "127.0.0.0/8",
            "HOOKLINE_LOG_FORMAT": "json",
            "HOOKLINE_WORKERS": "2",
        }

    def secret(self, name: str, text: str) -> None:
        """Write a file of a secret, with the newline that editors leave."""
        (self.directory / name).write_text(f"{text}\n")

    def arguments(self, **environ: str) -> list[str]:
        """What a container of the image is run with."""
        volume = f"--volume={self.directory}:{MOUNTED}:ro"
        return [*LOCKED, volume, *variables(self.environ | environ), IMAGE]

    def _started(self, *arguments: str) -> Container:
        container = Container(*arguments)
        self._containers.append(container)
        return container

    def start_node(self, port: int, **environ: str) -> Container:
        """`hookline serve` in a container."""
        listen = {
            "HOOKLINE_LISTEN": f"0.0.0.0:{port}",
            "HOOKLINE_SERVER": f"127.0.0.1:{port}",
        }
        return self._started(*self.arguments(**listen, **environ))

    async def postgres_is_up(self) -> None:
        """Wait for it."""
        ready = ("pg_isready", "-h", "127.0.0.1", "-p", str(self._port))
        await until(lambda: self.postgres.exec(*ready).returncode == 0, "Postgres is up")

    def client(self, port: int, token: str) -> HooklineClient:
        """A publisher, which verifies the certificate."""
        tls = Tls(ca_file=self.ca_file, server_name="hookline.hookline")
        return HooklineClient(f"127.0.0.1:{port}", token=token, tls=tls)

    def close(self) -> None:
        """Show what the containers printed, and remove them."""
        for container in reversed(self._containers):
            print(f"--- {container.id[:12]}", container.logs()[-6_000:], sep="\n")  # noqa: T201
            container.remove()


@pytest.fixture
def deployment(tmp_path: pathlib.Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path)
    try:
        yield made
    finally:
        made.close()


def status_of(process: pathlib.Path) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = process.joinpath("status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def is_locked(process: pathlib.Path) -> bool:
    """Whether a process has no privilege left, and can neither be dumped."""
    status, limits = status_of(process), process.joinpath("limits").read_text()
    assert status["Uid"].split() == [str(USER)] * 4
    assert status["Gid"].split() == [str(USER)] * 4
    assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    return True


def test_nothing_secret_and_no_tool_is_in_the_image() -> None:
    (image,) = json.loads(engine("inspect", IMAGE).stdout)
    assert image["Config"]["User"] == f"{USER}:{USER}"
    assert image["Config"]["StopSignal"] in {"SIGTERM", "15"}
    history = engine("history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGE).stdout
    assert "PIP_" not in history
    listed = run_once(*LOCKED, "--entrypoint=ls", IMAGE, "/opt/hookline/bin").stdout.split()
    assert "hookline" in listed
    assert not [name for name in listed if name.startswith("pip")]


async def test_a_deployment_from_its_migration_to_its_end(deployment: Deployment) -> None:
    await deployment.postgres_is_up()
    refused = run_once(*deployment.arguments())
    assert refused.returncode == 2
    assert "run `hookline migrate`" in refused.stderr
    migrated = run_once(*deployment.arguments(), "migrate")
    assert migrated.returncode == 0, migrated.stderr
    made = run_once(*deployment.arguments(), "keys", "create", "--scope", "admin")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()

    first_port, second_port = free_ports(2)
    scraped = f"127.0.0.1:{deployment.scrape_port}"
    first = deployment.start_node(first_port, HOOKLINE_PROMETHEUS_LISTEN=scraped)
    await until(first.is_healthy, "the image's health check succeeds, over TLS")
    assert first.exec("hookline", "health", check=True).stdout == "SERVING\n"
    processes = first.processes()
    assert len(processes) == 3, "the supervisor and two workers"
    assert all(map(is_locked, processes))
    written = first.exec("sh", "-c", "touch /x /tmp/x /run/x /opt/hookline/x /etc/hookline/x")
    assert written.stderr.count("Read-only file system") == 5
    environ = processes[0].joinpath("environ").read_text()
    assert "HOOKLINE_MASTER_KEY_FILE" in environ
    assert PASSWORD not in environ + first.logs()
    assert KEY not in environ + first.logs()

    arrivals: list[Arrival] = []
    async with Receiver("check", arrivals.append) as receiver:
        async with deployment.client(first_port, token) as client:
            request = CreateSubscriptionRequest(tenant="tenants/default", subscription_id="all")
            request.subscription.event_types.append("*")
            request.subscription.http.url = receiver.url
            await client.subscriptions.CreateSubscription(request)
            await client.publish("default", [Event(type="a.b", json_data="{}")] * 100)
            await until(lambda: len(arrivals) == 100, "all are delivered")

        def metrics() -> str:
            with urllib.request.urlopen(f"http://{scraped}/metrics") as answer:
                text: str = answer.read().decode()
                return text

        assert "hookline_buckets_owned{" in await asyncio.to_thread(metrics)

        second = await asyncio.to_thread(deployment.start_node, second_port)
        await until(second.is_healthy, "the second serves")
        async with deployment.client(second_port, token) as client:
            await client.publish("default", [Event(type="a.b", json_data="{}")] * 500)
            # In threads: the receiver answers meanwhile.
            assert await asyncio.to_thread(first.stop) == 0, "SIGTERM is a clean end"
            key = f"--env=HOOKLINE_API_KEY={token}"
            shown = (
                await asyncio.to_thread(engine, "exec", key, second.id, "hookline", "status")
            ).stdout
            buckets = sum(map(int, re.findall(r"(\d+) of 256 buckets", shown)))
            assert buckets == 256, "handed over before it ended"
            await client.publish("default", [Event(type="a.b", json_data="{}")] * 100)
            await until(lambda: len(arrivals) == 700, "and delivered by the others")
        assert second.stop() == 0


async def test_a_secret_that_others_may_read_is_refused(deployment: Deployment) -> None:
    (deployment.directory / "master-key").chmod(0o444)
    refused = run_once(*deployment.arguments())
    assert refused.returncode == 2
    assert "HOOKLINE_MASTER_KEY_FILE names /etc/hookline/master-key" in refused.stderr
    assert KEY not in refused.stderr


def test_an_arbitrary_user_may_run_it() -> None:
    done = run_once(*LOCKED, "--user=12345:0", IMAGE, "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hookline ")
