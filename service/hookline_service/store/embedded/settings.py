"""Configuration of the embedded Postgres: arguments of initdb, settings, access rules.

All of it is written anew into the cluster before each start, so nothing depends on what an older
Hookline wrote; `ALTER SYSTEM` still overrides it. Independent of processes and of paths but the
socket's.

Access. Other users of the machine must not, and no secret should be needed for it. So
there is no TCP at all (`listen_addresses` is empty); the Unix socket is in a directory that
Postgres's account alone may enter (0700), and is itself 0700; and Postgres asks the kernel for the
calling user (`peer`) and admits only the one that runs Hookline. Root can enter such directories
anyway, so a root Hookline reaches a Postgres that runs as a system account, while that account's
other processes are turned away.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from hookline_service.store.embedded.account import EmbeddedPostgresError

ROLE = "hookline"
DATABASE = "hookline"
LOG_FOLDER = "log"  # in the cluster

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        # An accepted event survives a power cut.
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        # Many small writes, on a developer's machine.
        "max_connections": "100",
        "shared_buffers": "256MB",
        "huge_pages": "off",
        "max_wal_size": "2GB",
        "checkpoint_timeout": "15min",
        "wal_compression": "pglz",  # the wheel's Postgres is built without lz4
        "random_page_cost": "1.1",
        "max_parallel_workers_per_gather": "0",  # containers have but 64 MB of /dev/shm
        "jit": "off",
        "autovacuum": "on",
        "timezone": "UTC",
        # A file for each day of the week. Neither statements nor their data are logged.
        "logging_collector": "on",
        "log_directory": LOG_FOLDER,
        "log_filename": "postgres-%a.log",
        "log_truncate_on_rotation": "on",
        "log_rotation_age": "1d",
        "log_rotation_size": "0",
        "log_timezone": "UTC",
        "log_checkpoints": "off",
        "log_error_verbosity": "terse",
        "log_min_error_statement": "panic",
        "cluster_name": "hookline",
    }
)
"""The defaults of EmbeddedPostgres."""

INITDB_ARGUMENTS = (
    f"--username={ROLE}",
    "--encoding=UTF8",
    # The same sort order everywhere, independent of the system's C library.
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--locale=C",
    "--data-checksums",
    "--auth-local=peer",
    "--auth-host=reject",
    "--no-instructions",
    # One call for the file system instead of one for each of a thousand files: 0.3 s, not 1.2 s.
    *(["--sync-method=syncfs"] if sys.platform == "linux" else []),
)

_SETTING_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?")


def configuration(settings: Mapping[str, str], *, socket_dir: Path, user: str) -> Mapping[str, str]:
    """Return the configuration files by name; only `user` may connect.

    EmbeddedPostgresError: a setting that cannot be written.
    """
    whole = {
        **SETTINGS,
        **settings,
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
    }
    head = "# Written by Hookline before each start. ALTER SYSTEM overrides it.\n"
    lines = "".join(f"{name} = {_quoted(name, value)}\n" for name, value in whole.items())
    return {
        "postgresql.conf": head + lines,
        "pg_hba.conf": f"{head}local all {ROLE} peer map=hookline\n",
        "pg_ident.conf": f'{head}hookline "{user}" {ROLE}\n',
    }


def _quoted(name: str, value: str) -> str:
    if not _SETTING_NAME.fullmatch(name) or not value.isprintable():
        raise EmbeddedPostgresError(
            f"{name!r} = {value!r} is no setting of Postgres: leave it out."
        )
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
