"""The meters: CPU time of a whole process tree, and memory of its largest process."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.machine import busy_s, cpu_s, descendants, filesystem_of, peak_memory_mb

TICK_S = 0.01
WORK = """
import subprocess, sys, time
name, depth = sys.argv[1], int(sys.argv[2])
ballast = bytearray(60_000_000) if depth == 0 else b""
while time.process_time() < 0.15:
    pass
if depth:
    child = subprocess.Popen([sys.executable, "-c", open(name).read(), name, str(depth - 1)],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    ended = subprocess.Popen([sys.executable, "-c",
                              "import time\\nwhile time.process_time() < 0.15: pass"])
    ended.wait()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tree() -> Iterator[int]:
    """A process whose child lives, whose grandchild is heavy, and whose other child has ended."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as program:
        program.write(WORK)
        program.flush()
        with subprocess.Popen(
            [sys.executable, program.name, program.name, "2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            while process.stdout.readline() != "ready\n":
                pass
            yield process.pid
            process.kill()


def test_cpu_time_of_a_tree_includes_ended_processes(tree: int) -> None:
    living, ended = 3, 2
    assert len(descendants(tree)) == living
    assert cpu_s(tree) >= (living + ended) * (0.15 - TICK_S)


def test_busy_time_grows_while_a_process_works() -> None:
    before_s, own_s = busy_s(), time.process_time()
    while time.process_time() < own_s + 0.2:
        pass
    assert busy_s() - before_s >= 0.2 - 2 * TICK_S


def test_peak_memory_is_that_of_the_largest_process(tree: int) -> None:
    heaviest = max(peak_memory_mb(pid) for pid in descendants(tree)[1:])
    assert peak_memory_mb(tree) == heaviest > 55


def test_file_system_is_that_of_the_nearest_mount() -> None:
    assert filesystem_of(Path("/proc/self")) == "proc"
