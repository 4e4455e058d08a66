"""What processes cost, by the kernel's own account in /proc, and what machine this is.

A process's time is that of all its threads; a tree's is that of all who descend from its root, and
of those who did and ended. `busy_s` is the same counted from the other side: what the cores did at
all. What they did beyond the processes that a run knows is somebody else's work, or the kernel's on
nobody's account (block I/O, mostly); on a quiet machine it is the check of the meters.
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
"""Columns of /proc/stat: idle, waiting for I/O, stolen. The kernel times these; how it was busy it
samples, and misses what is short."""


def _stat(pid: int) -> list[str] | None:
    """The fields after the command's name, `state` first; None where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def descendants(root: int) -> list[int]:
    """A process and all that descend from it, now."""
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
    """CPU seconds of a process and its descendants, those that ended included."""
    ticks = 0
    for pid in descendants(root):
        fields = _stat(pid)
        if fields is not None:
            ticks += sum(map(int, fields[_UTIME : _CSTIME + 1]))
    return ticks / _TICKS_PER_S


def own_cpu_s() -> float:
    """CPU seconds of this process and of its children that ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def busy_s() -> float:
    """CPU seconds that the cores of this machine were busy, since some moment."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    idle_s = sum(int(fields[column]) for column in _IDLE) / _TICKS_PER_S
    return time.monotonic() * (os.cpu_count() or 1) - idle_s


def peak_memory_mb(root: int) -> float:
    """The largest resident set that any one process of a tree has had, in MB."""
    return max((_peak_mb(pid) for pid in descendants(root)), default=0.0)


def _peak_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1_024 for line in lines if line.startswith("VmHWM:")), 0.0)


def filesystem_of(path: Path) -> str:
    """The type of the file system that a path is on: on a tmpfs, fsync costs nothing."""
    best, found = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, source = line.partition(" - ")
        mount = fields.split()[4]
        if path.resolve().is_relative_to(mount) and len(mount) >= best:
            best, found = len(mount), source.split()[0]
    return found


def description(directory: Path) -> dict[str, object]:
    """The machine, for whoever reads figures that were measured on it."""
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
