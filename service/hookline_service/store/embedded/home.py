"""Where the embedded Postgres lives: its cluster, its socket, the lock on its data directory.

As an ordinary user everything is in the data directory. As root, Postgres runs as a system account,
which must reach its files: where it cannot (a checkout below a private home), the cluster goes to a
refuge, and the data directory keeps a file that points there. The mode of a directory that was
there is never changed. Independent of running processes and settings.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog

from hookline_service.store.embedded.account import (
    Account,
    EmbeddedPostgresError,
    is_private,
    make_directory,
    open_directory,
)
from hookline_service.store.embedded.programs import Programs, find_programs, open_refuge

_LOCK = "postgres.lock"
_POINTER = "postgres.location"

# What Postgres reads from a list setting, and asyncpg from a URL, without any quoting.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")
_SOCKET_PATH_BYTES_MAX = 103  # sun_path is 104 bytes on macOS and 108 on Linux, NUL included
_SOCKET_DIRS_MAX = 16

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Home:
    """The directory of one embedded Postgres, and the account it runs as."""

    data_dir: Path
    cluster: Path
    account: Account
    programs: Programs
    socket_dir: Path

    @property
    def is_new(self) -> bool:
        """Whether there is no cluster yet."""
        return not os.path.lexists(self.cluster)

    def create(self, initdb_arguments: Iterable[str], *, timeout_s: float) -> None:
        """Make the cluster, whole or not at all: a process killed half-way leaves but a draft."""
        draft = self.cluster.with_name(f"{self.cluster.name}.new")
        if os.path.lexists(draft):
            shutil.rmtree(draft)
        make_directory(draft, 0o700, uid=self.account.uid, gid=self.account.gid)
        try:
            self._initdb(draft, initdb_arguments, timeout_s)
            draft.rename(self.cluster)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        if self.cluster.parent != self.data_dir:
            _write_pointer(self.data_dir, self.cluster)
            _log.warning(
                "embedded_postgres_moved",
                reason=f"Postgres runs as the user {self.account.name}, which cannot read"
                f" {self.data_dir}",
                cluster=str(self.cluster),
            )

    def _initdb(self, directory: Path, arguments: Iterable[str], timeout_s: float) -> None:
        made = self.account.run(
            [self.programs.folder / "initdb", "-D", directory, *arguments], timeout_s=timeout_s
        )
        if made.returncode != 0:
            raise EmbeddedPostgresError(
                f"Cannot make a database in {self.cluster}; initdb, run as user "
                f"{self.account.name}, said: {made.stderr.strip()[-1500:]}"
            )

    def check(self) -> None:
        """EmbeddedPostgresError: the cluster is not whole, or is one of another major version."""
        try:
            major = (self.cluster / "PG_VERSION").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            raise EmbeddedPostgresError(
                f"{self.cluster} is no whole Postgres database (PG_VERSION cannot be read): "
                "restore it from a backup, or move it away to begin with an empty one."
            ) from None
        if major != self.programs.major:
            raise EmbeddedPostgresError(
                f"{self.cluster} was made by Postgres {major}, and this is {self.programs.major}: "
                f"bring its data over with pg_dump of Postgres {major}, or move it away to begin "
                "with an empty one."
            )

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[IO[str]]:
        """Write a file of the cluster for its account only; replaces the old one at the end.

        This process may be root in a directory of another user: nothing is opened that this user
        could have created.
        """
        directory = open_directory(self.cluster, uid=self.account.uid)
        draft = f".{name}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            file = os.open(draft, flags, 0o600, dir_fd=directory)
            with os.fdopen(file, "w", encoding="utf-8") as stream:
                if self.account.uid != os.geteuid():
                    os.fchown(file, self.account.uid, self.account.gid)
                yield stream
                stream.flush()
                os.fsync(file)
            os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft, dir_fd=directory)
            raise
        finally:
            os.close(directory)

    def close_socket_dir(self) -> None:
        """Remove the socket's directory after a stop, where it is one of its own."""
        if self.socket_dir != self.cluster:
            with contextlib.suppress(OSError):
                self.socket_dir.rmdir()

    def remove(self) -> None:
        """Delete the cluster and the pointer to it. The data directory and its lock stay."""
        if not self.is_new:
            shutil.rmtree(self.cluster)
        (self.data_dir / _POINTER).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the data directory against other processes, and against other objects of this one.

    The kernel lets go when the process ends, however it ends. EmbeddedPostgresError: it is taken.
    """
    file = os.open(data_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedPostgresError(
                f"Another Hookline, process {_holder(file)}, uses {data_dir}: stop it, or set "
                "HOOKLINE_DATA_DIR to another directory."
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(file, 0)
            # A forked child may have the descriptor too, and closing ours would not let go.
            fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)


def _holder(file: int) -> str:
    """The process id in a lock that is held. Its holder writes it just after taking the lock."""
    for _ in range(50):
        if text := os.pread(file, 32, 0).decode("ascii", "replace").strip():
            return text
        time.sleep(0.01)
    return "unknown"


def make_data_dir(data_dir: Path, system_accounts: Sequence[str]) -> None:
    """Make the data directory if it is not there.

    For us alone (0700); as root also for the account of Postgres to pass through (0710, its group).
    """
    if data_dir.is_dir():
        return
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        if os.geteuid() == 0:
            group = Account.first_of(system_accounts).gid
            make_directory(data_dir, 0o710, uid=0, gid=group)
        else:
            make_directory(data_dir, 0o700, uid=os.geteuid(), gid=os.getegid())


def find_home(data_dir: Path, *, system_accounts: Sequence[str], refuges: Sequence[Path]) -> Home:
    """Where Postgres lives for this data directory, which must be there and locked.

    The cluster may be missing still. EmbeddedPostgresError: it can live nowhere, or the cluster
    that is there is not ours to run.
    """
    pointer = _read_pointer(data_dir)
    cluster = pointer or data_dir / "postgres"
    owner = cluster.lstat().st_uid if os.path.lexists(cluster) else None
    if pointer and owner is None:
        raise EmbeddedPostgresError(
            f"The database of {data_dir} was in {pointer}, which is gone: put it back, or remove "
            f"{data_dir / _POINTER} to begin with an empty one."
        )
    account = _account_for(cluster, owner, system_accounts)
    if os.geteuid() == 0 and not pointer and not account.reaches(data_dir):
        if owner is not None:
            raise EmbeddedPostgresError(
                f"User {account.name} cannot reach its database {cluster}: grant it access to "
                "the directories above it, or run Hookline as that user."
            )
        refuge = open_refuge(refuges, account, f"reach {data_dir}")
        cluster = refuge / f"{_slug(data_dir)}-{secrets.token_hex(4)}"
    programs = find_programs(account, refuges)
    return Home(data_dir, cluster, account, programs, _socket_dir_of(cluster, account))


def _account_for(cluster: Path, owner: int | None, system_accounts: Sequence[str]) -> Account:
    """Return the owner of a cluster; of a new one this user, or for root a system account."""
    own_uid = os.geteuid()
    if own_uid != 0:
        if owner not in (None, own_uid):
            raise EmbeddedPostgresError(
                f"{cluster} belongs to another user (id {owner}): run Hookline as that user or as "
                "root, or set HOOKLINE_DATA_DIR to a directory of your own."
            )
        return Account.of_uid(own_uid)
    if owner == 0:
        raise EmbeddedPostgresError(
            f"{cluster} belongs to root, and Postgres does not run as root: give it and all in it "
            "to an ordinary user, or move it away to begin with an empty database."
        )
    return Account.first_of(system_accounts) if owner is None else Account.of_uid(owner)


def _socket_dir_of(cluster: Path, account: Account) -> Path:
    """The directory of the Unix socket, private to the account; made if need be.

    The cluster itself where its path is short and plain enough. Otherwise one in /tmp, named by
    the account and the cluster so that it is found again; where another user took the name
    first, the next is tried.
    """
    path_bytes = len(os.fsencode(cluster / ".s.PGSQL.5432"))
    if _PLAIN_PATH.fullmatch(str(cluster)) and path_bytes <= _SOCKET_PATH_BYTES_MAX:
        return cluster
    digest = hashlib.sha256(os.fsencode(cluster)).hexdigest()[:16]
    for number in range(_SOCKET_DIRS_MAX):
        path = Path("/tmp") / f"hookline-{account.uid}-{digest}-{number}"  # noqa: S108 (its owner is checked)
        with contextlib.suppress(FileExistsError):
            make_directory(path, 0o700, uid=account.uid, gid=account.gid)
        if is_private(path, uid=account.uid):
            return path
    raise EmbeddedPostgresError(
        f"Other users took all names for a socket of {cluster}, {path} being the last: remove "
        "them, or set HOOKLINE_DATA_DIR to a shorter path."
    )


def _slug(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", str(path)).strip("-")[-40:]


def _read_pointer(data_dir: Path) -> Path | None:
    """Where the pointer file says that the cluster is. Only a file of our own is believed."""
    try:
        file = os.open(data_dir / _POINTER, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(file, encoding="utf-8", errors="surrogateescape") as stream:
        owner = os.fstat(file)
        if owner.st_uid != os.geteuid() or owner.st_mode & 0o022:
            raise EmbeddedPostgresError(
                f"{data_dir / _POINTER} was written by user id {owner.st_uid}: run Hookline as "
                "that user, or set HOOKLINE_DATA_DIR to a directory of your own."
            )
        return Path(stream.read().strip())


def _write_pointer(data_dir: Path, cluster: Path) -> None:
    draft = data_dir / f".{_POINTER}.{secrets.token_hex(4)}"
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(f"{cluster}\n")
        stream.flush()
        os.fsync(file)
    draft.rename(data_dir / _POINTER)
