"""CPU and memory of processes from /proc, and a description of the machine.

The time of a process includes all its threads; that of a tree includes all descendants of its root,
also ended ones. `busy_s` is measured independently, as the busy time of all cores. The difference
between both is the work of other programs, or kernel work that is not charged to a process (mostly
block I/O); on a quiet machine it validates the meters.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from pathlib import Path

CORES = len(os.sched_getaffinity(0))
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PPID, _UTIME, _CSTIME = 1, 11, 14
_IDLE = (3, 4, 7)
"""Columns of /proc/stat: idle, waiting for I/O, stolen. The kernel measures these exactly, but
samples busy time and misses short periods."""


def _stat(pid: int) -> list[str] | None:
    """Return the fields after the command name, `state` first; None if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def descendants(root: int) -> list[int]:
    """Return the pids of a process and its current descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields is not None:
                children.setdefault(int(fields[_PPID]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_s(root: int) -> float:
    """Return the CPU seconds of a process and its descendants, including ended ones."""
    ticks = 0
    for pid in descendants(root):
        fields = _stat(pid)
        if fields is not None:
            ticks += sum(map(int, fields[_UTIME : _CSTIME + 1]))
    return ticks / _TICKS_PER_S


def own_cpu_s() -> float:
    """Return the CPU seconds of this process and of its ended children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def busy_s() -> float:
    """Return the busy CPU seconds of all cores since an arbitrary time."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    idle_s = sum(int(fields[column]) for column in _IDLE) / _TICKS_PER_S
    return time.monotonic() * (os.cpu_count() or 1) - idle_s


def peak_memory_mb(root: int) -> float:
    """Return the peak resident set of the largest process of a tree, in MB."""
    return max((_peak_mb(pid) for pid in descendants(root)), default=0.0)


def _peak_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1_024 for line in lines if line.startswith("VmHWM:")), 0.0)


def filesystem_of(path: Path) -> str:
    """Return the file system type of a path; on a tmpfs, fsync costs nothing."""
    best, found = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, source = line.partition(" - ")
        mount = fields.split()[4]
        if path.resolve().is_relative_to(mount) and len(mount) >= best:
            best, found = len(mount), source.split()[0]
    return found


def description(directory: Path) -> dict[str, object]:
    """Return a description of the machine, stored with the figures."""
    cpus = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory_kb = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cores": CORES,
        "cpu": cpus[0] if cpus else platform.machine(),
        "memory_gb": round(memory_kb / 1_048_576, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": filesystem_of(directory),
    }
