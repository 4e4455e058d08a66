"""`hookline demo`: succeeds, fails loudly, and leaves nothing behind in either case."""

import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from tests.e2e.processes import HOOKLINE, environment, postgres_processes, run_hookline
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def scratch() -> Iterator[pathlib.Path]:
    """The directory for temporary files of one demo; it must be empty again afterwards."""
    with tempfile.TemporaryDirectory(prefix="hookline-e2e-") as directory:
        path = pathlib.Path(directory)
        path.chmod(0o711)  # as root, the user of Postgres has to pass through
        yield path
        assert list(path.iterdir()) == []


def test_all_of_it_happens_and_nothing_is_left(scratch: pathlib.Path) -> None:
    played = run_hookline("demo", timeout_s=90, variables={"TMPDIR": str(scratch)})
    assert played.returncode == 0, played.stdout + played.stderr
    done = played.stdout
    assert played.stderr == ""
    assert "\x1b" not in done, "no colours where there is no terminal"
    assert len(re.findall(r"signature verified  -> 200", done)) == 3
    assert len(re.findall(r"signature verified  -> 500", done)) == 2
    assert len(re.findall(r"attempt \d: HTTP error 500; next one at [\d:.]+, in ", done)) == 2
    assert len(re.findall(r"SUCCEEDED after 1 attempt, answers: 200", done)) == 2
    assert len(re.findall(r"SUCCEEDED after 3 attempts, answers: 500, 500, 200", done)) == 1
    shown = done.partition("The trace of order.created")[2]
    nested = ["an order is placed", "publish", "hookline.v1.EventService/PublishEvents", "publish"]
    nested += ["deliver to crm, attempt 1", "POST -> 200", "webhook at crm"]
    for depth, name in enumerate(nested):
        line = rf"^  {'  ' * depth}{re.escape(name)} +[\d.]+ ms"
        assert re.search(line, shown, re.MULTILINE), name
    retries = shown.partition("linked to it")[2]
    assert re.findall(r"^  deliver to billing, attempt (\d)", retries, re.MULTILINE) == ["2", "3"]
    assert len(re.findall(r"webhook at billing", shown)) == 3
    for name in ("tenants/acme", "eventTypes/user.registered", "eventTypes/order.created"):
        assert name in done


def test_a_receiver_that_never_recovers_makes_it_fail_loudly(scratch: pathlib.Path) -> None:
    played = run_hookline(
        "demo", "--break-receiver", timeout_s=90, variables={"TMPDIR": str(scratch)}
    )
    assert played.returncode == 1, played.stdout + played.stderr
    assert "EXHAUSTED after 4 attempts" in played.stdout
    assert "FAILED. It was expected that" in played.stdout
    assert "order.created for billing is SUCCEEDED in the end" in played.stdout


def test_settings_of_the_environment_do_not_reach_it(scratch: pathlib.Path) -> None:
    variables = {"TMPDIR": str(scratch), "HOOKLINE_DATABASE_URL": "x", "HOOKLINE_NONSENSE": "1"}
    assert run_hookline("demo", timeout_s=90, variables=variables).returncode == 0


class Playing(NamedTuple):
    """A demo that has begun to publish."""

    process: subprocess.Popen[str]
    data_dir: pathlib.Path
    service_pid: int


@contextmanager
def playing(scratch: pathlib.Path) -> Iterator[Playing]:
    """Start a demo, and go on once it publishes."""
    with subprocess.Popen(
        [*HOOKLINE, "demo"],
        env=environment(TMPDIR=str(scratch)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in iter(process.stdout.readline, "Publish\n"):
            assert line, "ended before it published"
        (data_dir,) = scratch.iterdir()
        assert len(postgres_processes(data_dir)) == 1
        (lock,) = (path for path in data_dir.iterdir() if "lock" in path.name)
        yield Playing(process, data_dir, int(lock.read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(scratch: pathlib.Path, number: signal.Signals) -> None:
    with playing(scratch) as demo:
        demo.process.send_signal(number)
        demo.process.communicate(timeout=60)
    assert demo.process.returncode == 128 + number
    assert postgres_processes(demo.data_dir) == []


def test_interrupted_while_it_tidies_up_it_leaves_nothing(scratch: pathlib.Path) -> None:
    with playing(scratch) as demo:
        assert demo.process.stdout is not None
        for line in iter(demo.process.stdout.readline, "Final states, read back over gRPC\n"):
            assert line, "ended before it read back"
        for _ in range(3):
            assert "SUCCEEDED" in demo.process.stdout.readline()
        demo.process.send_signal(signal.SIGINT)
        demo.process.communicate(timeout=60)
    assert demo.process.returncode == 128 + signal.SIGINT
    assert postgres_processes(demo.data_dir) == []
    assert not list(scratch.iterdir())


async def test_killed_it_takes_its_service_along(scratch: pathlib.Path) -> None:
    with playing(scratch) as demo:
        demo.process.kill()
        service = pathlib.Path(f"/proc/{demo.service_pid}")
        await until(lambda: not service.exists(), "the service ends")
    assert postgres_processes(demo.data_dir) == []
    shutil.rmtree(demo.data_dir)
