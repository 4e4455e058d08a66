"""One postmaster, the first process of a Postgres: launched by us, or found alive in its cluster.

Owns its launch, its signals, and the question whether a process id still means it. A process id by
itself proves nothing: after a crash `postmaster.pid` may name another process with the same
number. So a process is our postmaster only if it executes a `postgres` and works in this very
directory (/proc), or, without /proc, was started with exactly the arguments that we start it with
(ps). Other processes are neither adopted nor signalled. Independent of settings and connections.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

from hookline_service.store.embedded.account import EmbeddedPostgresError, clean_environment
from hookline_service.store.embedded.home import Home
from hookline_service.store.embedded.settings import LOG_FOLDER

_PID_FILE = "postmaster.pid"
_SOCKET_LOCK = ".s.PGSQL.5432.lock"
_START_LOG = "start.log"  # what it says before its logging collector runs
_STATUS_LINE = 7  # of postmaster.pid, from 0: "starting", "ready", "stopping"
_POLL_S = 0.02
_CRASH_STOP_S = 10.0
_LOG_LINES = 12


class Postmaster:
    """A postmaster that was running when this object was made."""

    def __init__(
        self,
        cluster: Path,
        pid: int,
        program: Path,
        process: "subprocess.Popen[bytes] | None" = None,
    ) -> None:
        self.cluster = cluster
        self.pid = pid
        self.program = program
        self._process = process

    @classmethod
    def find(cls, cluster: Path) -> Self | None:
        """The live postmaster of this cluster, started by any process."""
        lines = _lines_of(cluster / _PID_FILE)
        pid = _pid_in(lines)
        program = None if pid is None else program_of(pid, cluster)
        return None if pid is None or program is None else cls(cluster, pid, program)

    @classmethod
    def launch(cls, home: Home) -> Self:
        """Start a postmaster, in a session of its own: a terminal's Ctrl-C is for Hookline alone.

        EmbeddedPostgresError: the program cannot be started. It may still end by itself at once.
        """
        for lock in (home.cluster / _PID_FILE, home.socket_dir / _SOCKET_LOCK):
            _remove_stale(lock, home.cluster)
        program = home.programs.folder / "postgres"
        try:
            with home.replacing(_START_LOG) as log:
                process = subprocess.Popen(
                    [program, "-D", home.cluster],
                    **home.account.identity,
                    cwd="/",
                    env=clean_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    umask=0o077,
                    start_new_session=True,
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedPostgresError(
                f"Cannot start {program} as user {home.account.name} ({error}): run Hookline as an "
                "ordinary user, or set HOOKLINE_DATABASE_URL."
            ) from error
        return cls(home.cluster, process.pid, program, process)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs. A zombie does not."""
        if self._process is not None:
            return self._process.poll() is None
        return program_of(self.pid, self.cluster) is not None

    @property
    def is_ready(self) -> bool:
        """Whether it says that it accepts connections."""
        lines = _lines_of(self.cluster / _PID_FILE)
        return (
            _pid_in(lines) == self.pid
            and len(lines) > _STATUS_LINE
            and lines[_STATUS_LINE].strip() == "ready"
        )

    async def wait_ready(self, deadline: float) -> bool:
        """Wait until it accepts connections, past any recovery.

        False: it ended, or is not ready at the deadline (of time.monotonic).
        """
        while self.is_alive:
            if self.is_ready:
                return True
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return False

    async def stop(self, timeout_s: float) -> None:
        """Shut it down (fast: sessions are ended, all is written), and wait until it is gone.

        When `timeout_s` is over it is made to crash instead, which loses nothing: the next start
        recovers. EmbeddedPostgresError: even that did not end it.
        """
        for signal_number, patience_s in (
            (signal.SIGINT, timeout_s),
            (signal.SIGQUIT, _CRASH_STOP_S),
        ):
            self._signal(signal_number)
            if await self._ends_within(patience_s):
                return
        raise EmbeddedPostgresError(
            f"Postgres, process {self.pid} in {self.cluster}, does not stop: find out what holds "
            "it (most often a disk that does not answer), then end it by hand."
        )

    async def _ends_within(self, patience_s: float) -> bool:
        deadline = time.monotonic() + patience_s
        while self.is_alive:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def _signal(self, signal_number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal_number)
        elif self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)

    def describe_end(self) -> str:
        """What became of it, and the last lines of its log."""
        how = "is still starting"
        if not self.is_alive:
            how = "ended" if self._process is None else f"ended ({self._process.returncode})"
        return f"Postgres in {self.cluster} {how}. Its log ends:\n{log_tail(self.cluster)}"


def log_tail(cluster: Path) -> str:
    """The last lines of the latest start, from before and after the collector took over."""
    start_log = cluster / _START_LOG
    lines = _lines_of(start_log)[-_LOG_LINES:]
    with contextlib.suppress(OSError):
        began = start_log.stat().st_mtime
        logs = [path for path in (cluster / LOG_FOLDER).iterdir() if path.stat().st_mtime >= began]
        for path in sorted(logs, key=lambda path: path.stat().st_mtime)[-1:]:
            lines += _lines_of(path)[-_LOG_LINES:]
    return "\n".join(f"  {line}" for line in lines) or "  (it is empty)"


def program_of(pid: int, cluster: Path) -> Path | None:
    """The program that process `pid` executes, if it is a postmaster of this cluster, else None.

    Where a package was installed anew since, the path ends in " (deleted)".
    """
    if not Path("/proc/self/exe").exists():
        return program_by_arguments(pid, cluster)
    try:
        program = Path(f"/proc/{pid}/exe").readlink()
        works_in = Path(f"/proc/{pid}/cwd").stat()
        here = cluster.stat()
    except OSError:
        # Gone, a zombie, or a process of another user's, which ours is not.
        return None
    if (works_in.st_dev, works_in.st_ino) != (here.st_dev, here.st_ino):
        return None
    return program if program.name.removesuffix(" (deleted)") == "postgres" else None


def program_by_arguments(pid: int, cluster: Path) -> Path | None:
    """The same for systems without /proc: by the arguments that the process was started with."""
    listed = subprocess.run(
        ["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
    )
    arguments = listed.stdout.rstrip("\n")
    ours = f"/postgres -D {cluster}"
    return Path(arguments.removesuffix(f" -D {cluster}")) if arguments.endswith(ours) else None


def _remove_stale(lock: Path, cluster: Path) -> None:
    """Remove a lock file of Postgres whose process id now means another process, or a zombie.

    Postgres refuses to start beside it, though it clears those of dead processes itself. Should
    processes of the old Postgres live on, its shared memory still keeps a new one out.
    """
    pid = _pid_in(_lines_of(lock))
    if pid is None or program_of(pid, cluster) is not None:
        return
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return
    except PermissionError:
        pass
    lock.unlink(missing_ok=True)


def _pid_in(lines: list[str]) -> int | None:
    try:
        pid = int(lines[0])
    except (IndexError, ValueError):
        return None
    return abs(pid) or None  # negative where a single-user Postgres has the cluster


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
