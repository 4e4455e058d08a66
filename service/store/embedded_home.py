"""Where the embedded Postgres lives, and as whom: its account, its cluster, its programs, its socket.

Knows directories, owners and modes. Must not know a running process, a setting or a connection.

As an ordinary user everything is in the data directory. As root there is more to it, since Postgres
refuses to run as root: it runs as a system account, which must reach its files. Where that account
cannot (a checkout below a private home), the cluster goes to a refuge, a directory of root's below
/var, and the data directory keeps a file that points there; programs that it cannot reach are copied
to the refuge. The mode of a directory that was there is never changed, and no name in a directory
that others may write to is trusted without a look at its owner.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CLUSTER_NAME = "postgres"
POINTER_NAME = "postgres.location"
LOCK_NAME = "postgres.lock"

# `postgres` is made for this; `nobody` is everywhere, but other services may run as it too, and a
# process of the same account can read the cluster's files.
SYSTEM_ACCOUNTS = ("postgres", "_postgres", "nobody")
# /var/lib is where a system keeps state; /var/tmp survives a reboot, and some systems clean it.
REFUGES = (Path("/var/lib/hookline-embedded"), Path("/var/tmp/hookline-embedded"))  # noqa: S108 (opened only if it is root's)

# What Postgres writes into a list setting and asyncpg reads from a URL without any quoting.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")
_SOCKET_PATH_BYTES_MAX = 103  # sun_path is 104 bytes on macOS, 108 on Linux, with a NUL at its end
_PROGRAM_TIMEOUT_S = 20.0

_log = logging.getLogger(__name__)


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot be had; the text says what to do about it."""


@dataclass(frozen=True)
class Account:
    """A system account that Postgres may run as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def of_uid(cls, uid: int) -> "Account":
        """The account with this uid. EmbeddedPostgresError: it has no name, which initdb needs."""
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            raise EmbeddedPostgresError(
                f"User id {uid} has no entry in the password database, and Postgres needs one: add "
                "it, or set HOOKLINE_DATABASE_URL to a Postgres of your own."
            ) from None
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)

    @classmethod
    def first_of(cls, names: Sequence[str]) -> "Account":
        """The first of these accounts that this system has and that is not root by another name."""
        for name in names:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                if entry.pw_uid != 0:
                    return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)
        raise EmbeddedPostgresError(
            f"Postgres does not run as root, and there is none of the users {', '.join(names)} to "
            "run it as: start Hookline as an ordinary user, or set HOOKLINE_DATABASE_URL."
        )

    @property
    def switch(self) -> tuple[int, int, list[int]] | tuple[None, None, None]:
        """What subprocess wants as user, group and extra_groups in order to run as this account."""
        if self.uid == os.geteuid():
            return None, None, None
        return self.uid, self.gid, []

    def run(self, arguments: Sequence[str | Path]) -> "subprocess.CompletedProcess[str]":
        """Run a program as this account and wait for it. EmbeddedPostgresError: it cannot start."""
        user, group, extra_groups = self.switch
        try:
            return subprocess.run(
                arguments,
                user=user,
                group=group,
                extra_groups=extra_groups,
                check=False,
                cwd="/",
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PROGRAM_TIMEOUT_S,
                umask=0o077,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise EmbeddedPostgresError(
                f"{arguments[0]} did not end within {_PROGRAM_TIMEOUT_S:g} s: look for a disk or a "
                "machine that is overloaded, and start Hookline again."
            ) from error
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedPostgresError(
                f"Cannot run {arguments[0]} as user {self.name} ({error}): start Hookline as an "
                "ordinary user who may, or set HOOKLINE_DATABASE_URL."
            ) from error

    def reaches(self, directory: Path) -> bool:
        """Whether this account may enter the directory; asked of the kernel, not of mode bits."""
        return self.run(["/bin/sh", "-c", 'cd -- "$1"', "sh", directory]).returncode == 0

    def runs_programs_in(self, programs: Path) -> bool:
        """Whether this account can start the programs, shared libraries included."""
        try:
            return all(
                self.run([programs / name, "--version"]).returncode == 0
                for name in ("postgres", "initdb")
            )
        except EmbeddedPostgresError:
            return False


def clean_environment() -> dict[str, str]:
    """The environment of Postgres: none of ours, which holds secrets and may hold PG* variables."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", **kept}


@dataclass(frozen=True)
class Home:
    """Where one embedded Postgres lives."""

    data_dir: Path
    cluster: Path
    account: Account
    programs: Path

    @property
    def is_new(self) -> bool:
        """Whether there is no cluster yet."""
        return not os.path.lexists(self.cluster)

    def write(self, name: str, text: str) -> None:
        """Write a file of the cluster whole, readable by its account alone, whoever we are."""
        directory = _open_directory(self.cluster, self.account.uid)
        draft = f".{name}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            file = os.open(draft, flags, 0o600, dir_fd=directory)
            with open(file, "w", encoding="utf-8", errors="surrogateescape") as stream:
                self._hand_over(file)
                stream.write(text)
                stream.flush()
                os.fsync(file)
            os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(directory)

    def _hand_over(self, file: int) -> None:
        if os.geteuid() != self.account.uid:
            os.fchown(file, self.account.uid, self.account.gid)

    def socket_dir(self) -> Path:
        """The directory of the Unix socket, private to the account: made if it is not there.

        The cluster itself where its path is short and plain enough. Otherwise a directory in /tmp,
        named by the account and the cluster so that it is found again; another user who took the
        name first is passed by.
        """
        longest = len(os.fsencode(self.cluster / ".s.PGSQL.5432"))
        if _PLAIN_PATH.fullmatch(str(self.cluster)) and longest <= _SOCKET_PATH_BYTES_MAX:
            return self.cluster
        digest = hashlib.sha256(os.fsencode(self.cluster)).hexdigest()[:16]
        for number in range(16):
            path = Path("/tmp") / f"hookline-{self.account.uid}-{digest}-{number}"  # noqa: S108 (owner and mode are checked)
            if _own_private_directory(path, self.account):
                return path
        raise EmbeddedPostgresError(
            f"Cannot make a private directory for the database's socket: other users took its names "
            f"in /tmp (hookline-{self.account.uid}-{digest}-0 and on); remove them, or set "
            "HOOKLINE_DATA_DIR to a shorter path."
        )

    def create(self, initdb_arguments: Iterable[str]) -> None:
        """Make the cluster, whole or not at all: a process killed half-way leaves only a draft."""
        draft = self.cluster.with_name(f"{self.cluster.name}.new")
        if os.path.lexists(draft):
            shutil.rmtree(draft)
        make_directory(draft, 0o700, self.account.uid, self.account.gid)
        made = self.account.run([self.programs / "initdb", "-D", draft, *initdb_arguments])
        if made.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise EmbeddedPostgresError(
                f"Cannot make a database in {self.cluster}; initdb, as user {self.account.name}, "
                f"said:\n{made.stdout[-500:]}{made.stderr[-1500:]}"
            )
        draft.rename(self.cluster)
        if self.cluster.parent != self.data_dir:
            _write_pointer(self.data_dir, self.cluster)
            _log.warning(
                "user %s, whom Postgres runs as, cannot reach %s: the database is in %s",
                self.account.name,
                self.data_dir,
                self.cluster,
            )

    def remove(self) -> None:
        """Delete the cluster and what points to it. The data directory and the lock stay."""
        if not self.is_new:
            shutil.rmtree(self.cluster)
        (self.data_dir / POINTER_NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the data directory against other processes, and other objects of this one.

    The kernel lets go when the process ends, however it ends. EmbeddedPostgresError: it is taken.
    """
    path = data_dir / LOCK_NAME
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise EmbeddedPostgresError(
                f"Another Hookline, process {holder}, is using {data_dir}: stop it, or set "
                "HOOKLINE_DATA_DIR to another directory."
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(file, 0)
            # A forked child may share the descriptor, and closing ours would leave it locked.
            fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)
