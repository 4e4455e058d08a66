"""`hookline demo`: succeeds in seconds, fails loudly, and leaves nothing behind in either case."""

import pathlib
import re
import signal
import subprocess
import tempfile
import time

import pytest

from tests.e2e.processes import HOOKLINE, environment, run_hookline

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def scratch() -> pathlib.Path:
    """Where the demo keeps its data; its own directories there are recognised by their name."""
    return pathlib.Path(tempfile.gettempdir())


def left_behind(scratch: pathlib.Path) -> set[str]:
    """What demos have there, running or not."""
    return {path.name for path in scratch.glob("hookline-demo-*")}


def test_all_of_it_happens_and_nothing_is_left(scratch: pathlib.Path) -> None:
    before, began = left_behind(scratch), time.monotonic()
    played = run_hookline("demo", timeout_s=90)
    assert played.returncode == 0, played.stdout + played.stderr
    assert time.monotonic() - began < 60
    told = played.stdout
    assert played.stderr == ""
    assert "\x1b" not in told, "no colours where there is no terminal"
    assert len(re.findall(r"signature verified  -> 200", told)) == 3
    assert len(re.findall(r"signature verified  -> 500", told)) == 2
    assert len(re.findall(r"attempt \d was refused with 500; next one at [\d:.]+, in ", told)) == 2
    assert len(re.findall(r"SUCCEEDED after 1 attempt, answers: 200", told)) == 2
    assert len(re.findall(r"SUCCEEDED after 3 attempts, answers: 500, 500, 200", told)) == 1
    for name in ("tenants/acme", "eventTypes/user.registered", "eventTypes/order.created"):
        assert name in told
    assert left_behind(scratch) <= before


def test_a_receiver_that_never_recovers_makes_it_fail_loudly(scratch: pathlib.Path) -> None:
    before = left_behind(scratch)
    played = run_hookline("demo", "--break-receiver", timeout_s=90)
    assert played.returncode == 1, played.stdout + played.stderr
    assert "EXHAUSTED after 4 attempts" in played.stdout
    assert "FAILED. It was expected that" in played.stdout
    assert "order.created for billing is SUCCEEDED in the end" in played.stdout
    assert left_behind(scratch) <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(scratch: pathlib.Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*HOOKLINE, "demo"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as playing:
        assert playing.stdout is not None
        told = iter(playing.stdout.readline, "")
        line = next(line for line in told if "Publish" in line)
        assert line
        (running,) = (path for path in scratch.glob("hookline-demo-*") if is_of(path, playing.pid))
        playing.send_signal(number)
        playing.communicate(timeout=60)
    assert playing.returncode == 128 + number
    assert not running.exists()


def is_of(data_dir: pathlib.Path, demo_pid: int) -> bool:
    """Whether the service that holds a data directory is a child of this demo."""
    holders = [
        int(match[0])
        for path in data_dir.glob("*lock*")
        if (match := re.match(r"\d+", path.read_text()))
    ]
    parents = {
        int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        for pid in holders
        if pathlib.Path(f"/proc/{pid}").exists()
    }
    return demo_pid in parents
