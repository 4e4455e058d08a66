"""What a process gives up at its start: core dumps, and being read by others of its user."""

import os
import subprocess
import sys

PRCTL = "ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)"
"""PR_GET_DUMPABLE"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run a line of Python in a process that may dump as much core as the machine lets it."""
    allow = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))"
    return subprocess.run(
        [sys.executable, "-c", f"import ctypes, os\n{allow}\n{code}"],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_core_is_dumped_by_any_kernel_and_the_limit_cannot_be_raised_again() -> None:
    told = run(
        "from hookline_service.supervisor.hardening import forbid_core_dumps\n"
        f"before = {PRCTL}\n"
        "forbid_core_dumps()\n"
        f"print(before, {PRCTL}, resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert told.stdout == "1 0 (0, 0)\n", told.stderr
