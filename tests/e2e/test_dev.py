"""`hookline dev` as a process: what it prints, how it ends, what it finds again."""

import asyncio
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import grpc
import pytest

from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest
from hookline.v1.event_service_pb2_grpc import EventServiceStub
from tests.e2e.processes import (
    Dev,
    data_directory,
    environment,
    postgres_processes,
    run_hookline,
    running_dev,
)
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it_cleanly_with_its_postgres(
    data_dir: pathlib.Path, number: signal.Signals
) -> None:
    with running_dev(data_dir) as dev:
        assert postgres_processes(data_dir)
        dev.signal(number)
        assert dev.ended() == 0
    assert postgres_processes(data_dir) == []
    assert dev.lines[-1] == "ready", "a clean stop says nothing"


async def test_a_signal_during_the_start_stops_it_too(data_dir: pathlib.Path) -> None:
    with Dev(data_dir) as starting:
        await until(data_dir.exists, "the start has begun")
        starting.signal(signal.SIGTERM)
        assert starting.ended() == 0
    assert "ready" not in starting.lines
    assert postgres_processes(data_dir) == []


def test_the_end_of_its_input_stops_a_child(data_dir: pathlib.Path) -> None:
    with running_dev(data_dir, ["--stop-with-input"]) as dev:
        assert dev.process.stdin is not None
        dev.process.stdin.close()
        assert dev.ended() == 0


def typed(command: str, grpcurl: pathlib.Path) -> str:
    """What a printed line answers, typed into another terminal."""
    path = os.pathsep.join([str(grpcurl.parent), os.environ["PATH"]])
    return subprocess.run(
        [
            "/bin/sh",
            "-c",
            re.sub(r"\bhookline (?=[a-z])", f"{sys.executable} -P -m hookline_service ", command),
        ],
        check=True,
        env=environment(PATH=path),
        capture_output=True,
        text=True,
    ).stdout


def test_the_lines_that_it_prints_work_as_they_stand(dev: Dev, grpcurl: pathlib.Path) -> None:
    printed = [line.strip() for line in dev.lines if line.startswith("  ")]
    commands = [line for line in printed if re.match(r"(grpcurl|hookline (?!listen|event))", line)]
    assert len(commands) == 6
    listed, described, created, published, deliveries, status = (
        typed(command, grpcurl) for command in commands
    )
    assert "hookline.v1.EventService" in listed
    assert "which events are delivered" in described
    assert "whsec_" in created
    assert "evt_" in published
    assert "dlv_" in deliveries
    assert "256 of 256 buckets" in status


def test_with_authentication_they_make_a_key_and_show_it(
    data_dir: pathlib.Path, grpcurl: pathlib.Path
) -> None:
    with running_dev(data_dir, HOOKLINE_AUTH="on") as dev:
        done = "\n".join(dev.lines)
        made = re.search(r"authentication is on \((export HOOKLINE_API_KEY=.*)\),", done)
        assert made is not None
        for command, said in (("grpcurl .* list", "EventService"), ("hookline status", "pending")):
            line = re.search(rf"^  {command}.*", done, re.MULTILINE)
            assert line is not None
            assert said in typed(f"{made[1]}; {line[0].strip()}", grpcurl)
        assert dev.stop() == 0


def test_a_second_one_on_the_same_directory_is_refused(dev: Dev) -> None:
    second = run_hookline("dev", "--listen", "127.0.0.1:0", "--data-dir", str(dev.data_dir))
    assert second.returncode == 2
    assert second.stdout == ""
    assert len(second.stderr.splitlines()) == 1
    assert str(dev.process.pid) in second.stderr


def test_a_port_that_is_taken_is_one_sentence(data_dir: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = run_hookline("dev", "--listen", address, "--data-dir", str(data_dir))
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"hookline: cannot listen on {address}")
    assert len(refused.stderr.splitlines()) == 1
    assert postgres_processes(data_dir) == []


@pytest.mark.parametrize(
    "arguments, variables, message",
    [
        (["dev", "--listen", "nowhere"], {}, "--listen"),
        (["dev", "--listen", "0.0.0.0:0"], {}, "loopback"),
        (["dev"], {"HOOKLINE_LEASE_S": "1"}, "HOOKLINE_LEASE_S"),
        (["dev"], {"HOOKLINE_LISTN": "1"}, "did you mean HOOKLINE_LISTEN?"),
        (["dev", "--data-dir", "/proc/nowhere"], {}, "/proc/nowhere"),
        (["serve"], {}, "HOOKLINE_DATABASE_URL"),
        (["serve"], {"HOOKLINE_AUTH": "off"}, "HOOKLINE_MASTER_KEY"),
        (["migrate"], {}, "HOOKLINE_DATABASE_URL"),
        (
            ["migrate"],
            {"HOOKLINE_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/db"},
            "the database cannot be reached",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    arguments: list[str], variables: dict[str, str], message: str, tmp_path: pathlib.Path
) -> None:
    variables = {"HOOKLINE_DATA_DIR": str(tmp_path / "data")} | variables
    refused = run_hookline(*arguments, variables=variables)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "hunter2" not in refused.stderr
    assert refused.stdout == ""


def test_after_kill_9_the_next_start_adopts_the_postgres_that_lives(data_dir: pathlib.Path) -> None:
    with running_dev(data_dir) as first:
        first.process.kill()
        first.process.wait()
    (postmaster,) = postgres_processes(data_dir)
    with running_dev(data_dir) as second:
        assert postgres_processes(data_dir) == [postmaster]
        assert second.stop() == 0
    assert postgres_processes(data_dir) == []


def test_after_kill_9_of_both_the_next_start_recovers(data_dir: pathlib.Path) -> None:
    with running_dev(data_dir) as first:
        first.process.kill()
        first.process.wait()
    for postmaster in postgres_processes(data_dir):
        os.kill(postmaster, signal.SIGKILL)
    with running_dev(data_dir) as second:
        assert second.stop() == 0


def test_the_master_key_is_the_owner_s_alone(dev: Dev) -> None:
    key = dev.data_dir / "master.key"
    assert key.stat().st_mode & 0o777 == 0o600


def test_it_serves_where_a_sandbox_has_no_home(grpcurl: pathlib.Path) -> None:
    with data_directory() as path, running_dev(path, HOME="/nonexistent", USER="") as dev:
        listed = subprocess.run(
            [grpcurl, "-plaintext", dev.target, "list"], check=True, capture_output=True, text=True
        )
        assert "hookline.v1.EventService" in listed.stdout
        assert dev.stop() == 0


async def test_a_client_that_keeps_to_the_streams_of_a_connection_is_not_refused(
    data_dir: pathlib.Path,
) -> None:
    """By default gRPC's core also counts calls that it answered and has not freed yet."""
    request = PublishEventsRequest(
        tenant="tenants/default", events=[Event(type="order.created", json_data="{}")]
    )
    with running_dev(data_dir, HOOKLINE_MAX_STREAMS_PER_CONNECTION="64") as dev:
        async with grpc.aio.insecure_channel(dev.target, [("grpc.enable_retries", 0)]) as channel:
            stub = EventServiceStub(channel)

            async def publish_again_and_again() -> None:
                for _ in range(12):
                    await stub.PublishEvents(request, timeout=20)

            await asyncio.gather(*[publish_again_and_again() for _ in range(64)])
        assert dev.stop() == 0
