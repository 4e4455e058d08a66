"""What a process gives up at its start, so that its memory, which holds the keys, stays in it."""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4
"""<linux/prctl.h>"""


def forbid_core_dumps() -> None:
    """Let no core dump of this process be written, and no process of its user read its memory.

    RLIMIT_CORE alone does not bind a kernel whose core_pattern pipes into a program, such as
    systemd-coredump. A process that is not dumpable is dumped in no way; nor can another process of
    the same user, without CAP_SYS_PTRACE, attach to it or read /proc/PID/mem and /proc/PID/environ.
    The limit is inherited by child processes; that they may not be dumped is not.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
