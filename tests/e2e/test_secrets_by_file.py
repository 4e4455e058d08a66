"""`hookline serve` whose secrets are in files and behind a command, and in no environment."""

import asyncio
import pathlib
import re

from tests.e2e.processes import Node, run_hookline, workers
from tests.e2e.test_serve import KEY


def secret(directory: pathlib.Path, name: str, text: str) -> str:
    """A file of a secret, as it is mounted; its path."""
    path = directory / name
    path.write_text(text + "\n")
    path.chmod(0o440)
    return str(path)


def environ_of(pid: int) -> str:
    """What a process was started with; nothing where its own user may not read it."""
    try:
        return pathlib.Path(f"/proc/{pid}/environ").read_text()
    except PermissionError:
        return ""


def core_limits(pid: int) -> tuple[str, str]:
    """What core a process may dump, and what it may allow itself."""
    limits = pathlib.Path(f"/proc/{pid}/limits").read_text()
    match = re.search(r"^Max core file size +(\S+) +(\S+)", limits, re.MULTILINE)
    assert match is not None
    return match[1], match[2]


async def test_serve_takes_its_secrets_from_files_and_a_command(
    database_url: str, tmp_path: pathlib.Path
) -> None:
    variables = {
        "HOOKLINE_DATABASE_URL_FILE": secret(tmp_path, "url", database_url),
        "HOOKLINE_MASTER_KEY_COMMAND": f"cat {secret(tmp_path, 'key', KEY)}",
        "HOOKLINE_WORKERS": "2",
    }
    made = run_hookline("keys", "create", "--scope", "admin", variables=variables)
    assert made.returncode == 0, made.stderr
    token = {"HOOKLINE_API_KEY_FILE": secret(tmp_path, "token", made.stdout)}
    with Node(["serve"], variables) as node:
        node.ready()
        for pid in [node.process.pid, *workers(node)]:
            environ = environ_of(pid)
            assert database_url not in environ
            assert KEY not in environ
            assert core_limits(pid) == ("0", "0")
        server = ("--server", node.target)
        status = await asyncio.to_thread(run_hookline, "status", *server, variables=token)
        assert status.returncode == 0, status.stderr
        both = token | {"HOOKLINE_TOKEN": "ey"}
        refused = await asyncio.to_thread(run_hookline, "status", *server, variables=both)
        assert "HOOKLINE_API_KEY and HOOKLINE_TOKEN are both set" in refused.stderr
        assert await asyncio.to_thread(node.stop) == 0


def test_a_missing_file_is_reported_with_its_variable(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "nothing")
    refused = run_hookline("status", variables={"HOOKLINE_API_KEY_FILE": path})
    assert refused.returncode == 2
    assert f"HOOKLINE_API_KEY_FILE names {path}, which cannot be read" in refused.stderr


def test_core_dumps_are_allowed_where_it_is_said(database_url: str) -> None:
    variables = {
        "HOOKLINE_DATABASE_URL": database_url,
        "HOOKLINE_MASTER_KEY": KEY,
        "HOOKLINE_ALLOW_CORE_DUMPS": "on",
    }
    with Node(["serve"], variables) as node:
        node.ready()
        inherited = pathlib.Path("/proc/self/limits").read_text()
        match = re.search(r"^Max core file size +(\S+) +(\S+)", inherited, re.MULTILINE)
        assert match is not None
        assert core_limits(node.process.pid) == (match[1], match[2])
        assert node.stop() == 0
