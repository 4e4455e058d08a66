"""The limits of a process: no core dump, and no other process of its user reads its memory."""

import os
import subprocess
import sys

PRCTL = "ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)"
"""PR_GET_DUMPABLE"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run a line of Python in a process whose limits allow core dumps."""
    allow = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))"
    return subprocess.run(
        [sys.executable, "-c", f"import ctypes, os\n{allow}\n{code}"],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_core_dumps_are_forbidden_and_the_limit_cannot_be_raised() -> None:
    done = run(
        "from hookline_service.supervisor.node import forbid_core_dumps\n"
        f"before = {PRCTL}\n"
        "forbid_core_dumps()\n"
        f"print(before, {PRCTL}, resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert done.stdout == "1 0 (0, 0)\n", done.stderr
