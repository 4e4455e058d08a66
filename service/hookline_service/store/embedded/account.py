"""The system account that the embedded Postgres runs as, and the directories that are given to it.

Postgres refuses to run as root, so a root Hookline starts it as another user; an ordinary user is
that account itself. Owns running a program as the account, and making a directory for it without
trusting a name in a directory that others may write to. Independent of clusters.
"""

import contextlib
import os
import pwd
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypedDict

# `postgres` is made for this; `nobody` is everywhere, but other services may run as it too, and a
# process of the same account can read the cluster's files.
SYSTEM_ACCOUNTS = ("postgres", "_postgres", "nobody")


class Identity(TypedDict, total=False):
    """Arguments of subprocess; without them a program runs as we do."""

    user: int
    group: int
    extra_groups: list[int]


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot be had; the text says what to do about it."""


@dataclass(frozen=True)
class Account:
    """A user of this system that Postgres may run as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def of_uid(cls, uid: int) -> Self:
        """The account with this uid. EmbeddedPostgresError: it has no name, which initdb needs."""
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            raise EmbeddedPostgresError(
                f"User id {uid} is not in the password database, and Postgres needs it there: add "
                "it, or set HOOKLINE_DATABASE_URL to a Postgres of your own."
            ) from None
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)

    @classmethod
    def first_of(cls, names: Sequence[str]) -> Self:
        """The first of these users that this system has and that is not root by another name."""
        for name in names:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                if entry.pw_uid != 0:
                    return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)
        raise EmbeddedPostgresError(
            f"Postgres does not run as root, and there is none of the users {', '.join(names)} to "
            "run it as: start Hookline as an ordinary user, or set HOOKLINE_DATABASE_URL."
        )

    def run(
        self, arguments: Sequence[str | Path], *, timeout_s: float
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program as this account to its end. EmbeddedPostgresError: it cannot, or hangs."""
        try:
            return subprocess.run(
                arguments,
                **self.identity,
                check=False,
                cwd="/",
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
                umask=0o077,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedPostgresError(
                f"{arguments[0]} did not end within {timeout_s:g} s: find out what the disk or the "
                "machine is busy with, and start Hookline again."
            ) from None
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedPostgresError(
                f"Cannot run {arguments[0]} as user {self.name} ({error}): start Hookline as an "
                "ordinary user, or set HOOKLINE_DATABASE_URL."
            ) from error

    @property
    def identity(self) -> "Identity":
        """What a subprocess takes in order to run as this account."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def reaches(self, directory: Path) -> bool:
        """Whether this account may enter the directory: asked of the kernel, not of mode bits."""
        probe: list[str | Path] = ["/bin/sh", "-c", 'cd -- "$1"', "sh", directory]
        return self.run(probe, timeout_s=10).returncode == 0


def clean_environment() -> dict[str, str]:
    """The environment of Postgres: nothing of ours, which holds secrets and may hold PG* names."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", **kept}


def make_directory(path: Path, mode: int, *, uid: int, gid: int) -> None:
    """Make a directory with this owner and exactly this mode, whatever the umask is.

    FileExistsError: there is something of that name. Should another user put something else in its
    place at this very moment, that is left alone.
    """
    path.mkdir(mode=0o700)
    directory = open_directory(path, uid=os.geteuid())
    try:
        if (uid, gid) != (os.geteuid(), os.getegid()):
            os.fchown(directory, uid, gid)
        os.fchmod(directory, mode)
    finally:
        os.close(directory)


def open_directory(path: Path, *, uid: int) -> int:
    """A descriptor of a directory of this user's. EmbeddedPostgresError: it is another's."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    owner = os.fstat(directory).st_uid
    if owner != uid:
        os.close(directory)
        raise EmbeddedPostgresError(
            f"{path} belongs to user id {owner}, not {uid}: remove it, or give it back."
        )
    return directory


def is_private(path: Path, *, uid: int) -> bool:
    """Whether this is a real directory of this user's that no other user may enter."""
    found = path.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == uid
        and stat.S_IMODE(found.st_mode) & 0o077 == 0
    )
