"""Where secrets come from: the environment, a file, a command; each way it goes wrong."""

import base64
import os
import sys
from pathlib import Path

import pytest

from hookline_service.config import Role, Settings, SettingsError
from hookline_service.config.secret_sources import MAX_SECRET_BYTES

KEY = base64.b64encode(bytes(range(32))).decode()
URL = "postgresql://hookline:hunter2@db.internal/hookline"
PROXY = "http://me:hunter3@proxy.internal:3128"


def secret_file(directory: Path, text: str | bytes, mode: int = 0o440) -> str:
    """A file of a secret, as it is mounted; its name."""
    path = directory / "secret"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return str(path)


def printing(code: str) -> str:
    """A command that runs a line of Python."""
    return f"{sys.executable} -c '{code}'"


def problem(environ: dict[str, str], role: Role = Role.DEV) -> str:
    """The one thing that is wrong with these settings."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ(environ, role)
    (told,) = caught.value.problems
    return told


@pytest.mark.parametrize("end", ["", "\n", "\r\n", " \n\n"])
def test_every_secret_setting_is_read_from_a_file(tmp_path: Path, end: str) -> None:
    files = {
        "HOOKLINE_DATABASE_URL_FILE": URL,
        "HOOKLINE_MASTER_KEY_FILE": KEY,
        "HOOKLINE_EGRESS_PROXY_FILE": PROXY,
    }
    for name, text in files.items():
        directory = tmp_path / name
        directory.mkdir()
        files[name] = secret_file(directory, text + end)
    settings = Settings.from_environ(files, Role.SERVE)
    assert settings.database_url == URL
    assert settings.master_keys == (bytes(range(32)),)
    assert settings.egress.proxy is not None
    assert settings.egress.proxy.host == "proxy.internal"


def test_every_secret_setting_is_printed_by_a_command(tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.write_text(KEY + "\n")
    environ = {
        "PATH": os.environ["PATH"],
        "HOOKLINE_MASTER_KEY_COMMAND": f"cat '{told}'",
        "HOOKLINE_DATABASE_URL_COMMAND": f"printf %s {URL}",
        "HOOKLINE_EGRESS_PROXY_COMMAND": f"printf %s {PROXY}",
    }
    settings = Settings.from_environ(environ, Role.SERVE)
    assert settings.master_keys == (bytes(range(32)),)
    assert settings.database_url == URL
    assert settings.egress.proxy is not None


def test_a_command_is_given_the_environment_and_no_shell() -> None:
    code = 'import os, sys; print(os.environ["KEY"] if sys.argv[1:] == ["$KEY", ";"] else "")'
    environ = {"KEY": KEY, "HOOKLINE_MASTER_KEY_COMMAND": f"{printing(code)} $KEY ';'"}
    assert Settings.from_environ(environ, Role.DEV).master_keys == (bytes(range(32)),)


def test_migrating_runs_no_command_for_the_master_key() -> None:
    environ = {"HOOKLINE_DATABASE_URL": URL, "HOOKLINE_MASTER_KEY_COMMAND": "no-such-command"}
    assert Settings.from_environ(environ, Role.MIGRATE).master_keys == ()
    assert problem(environ, Role.FORGET).startswith("HOOKLINE_MASTER_KEY_COMMAND runs 'no-such")


@pytest.mark.parametrize(
    "names",
    [
        ("MASTER_KEY", "MASTER_KEY_FILE"),
        ("MASTER_KEY_FILE", "MASTER_KEY_COMMAND"),
        ("DATABASE_URL", "DATABASE_URL_FILE"),
        ("EGRESS_PROXY", "EGRESS_PROXY_COMMAND"),
    ],
)
def test_two_sources_contradict_one_another(names: tuple[str, str]) -> None:
    first, second = (f"HOOKLINE_{name}" for name in names)
    told = problem({first: KEY, second: "/nowhere"})
    assert told == f"{first} and {second} are set: set one of them"


def test_an_empty_variable_is_an_unset_one(tmp_path: Path) -> None:
    environ = {
        "HOOKLINE_MASTER_KEY": "",
        "HOOKLINE_MASTER_KEY_FILE": secret_file(tmp_path, KEY),
        "HOOKLINE_MASTER_KEY_COMMAND": " ",
    }
    assert Settings.from_environ(environ, Role.DEV).master_keys == (bytes(range(32)),)


@pytest.mark.parametrize("mode", [0o444, 0o644, 0o442, 0o441])
def test_a_file_that_others_have_access_to_is_refused(tmp_path: Path, mode: int) -> None:
    told = problem({"HOOKLINE_MASTER_KEY_FILE": secret_file(tmp_path, KEY, mode)})
    assert f"its mode is {mode:04o}" in told
    assert "chmod 0440" in told
    assert KEY not in told


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "holds no text"),
        (b"\n \n", "holds no text"),
        (b"a\0b", "holds no text"),
        (b"\xff\xfe", "holds no UTF-8 text"),
        (b"x" * (MAX_SECRET_BYTES + 1), "holds more than 65,536 bytes"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    told = problem({"HOOKLINE_MASTER_KEY_FILE": secret_file(tmp_path, content)})
    assert told.startswith(f"HOOKLINE_MASTER_KEY_FILE names {tmp_path}/secret, which ")
    assert told.endswith(said)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    told = problem({"HOOKLINE_MASTER_KEY_FILE": str(tmp_path / "missing")})
    assert told.endswith("/missing, which cannot be read: No such file or directory")
    told = problem({"HOOKLINE_MASTER_KEY_FILE": str(tmp_path)})
    assert told.endswith("which cannot be read: Is a directory")
    assert "cannot be read" in problem({"HOOKLINE_MASTER_KEY_FILE": "a\0b"})


def test_what_a_source_holds_is_checked_and_never_shown(tmp_path: Path) -> None:
    wrong = f"{KEY[:-4]}hunter2"
    told = problem({"HOOKLINE_MASTER_KEY_FILE": secret_file(tmp_path, wrong)})
    assert told.startswith("HOOKLINE_MASTER_KEY_FILE: ")
    assert "hunter2" not in told
    told = problem({"HOOKLINE_DATABASE_URL_COMMAND": printing('print("mysql://u:hunter2@db")')})
    assert told.startswith("HOOKLINE_DATABASE_URL_COMMAND: must be a URL")
    assert "hunter2" not in told


def test_a_command_that_fails_is_told_with_what_it_reported() -> None:
    code = 'import sys; print("hunter2"); sys.exit("first\\nAccessDenied: \\33[1m no such key")'
    told = problem({"HOOKLINE_MASTER_KEY_COMMAND": printing(code)})
    assert told == (
        f"HOOKLINE_MASTER_KEY_COMMAND runs {sys.executable!r}, which ended with 1:"
        " AccessDenied: ?[1m no such key"
    )


@pytest.mark.parametrize(
    "command, said",
    [
        ("/no/such/command", "cannot be run: No such file or directory"),
        ("cat 'unclosed", "is no command: no closing quotation"),
        (printing("pass"), "holds no text"),
        (f"{sys.executable} -c 'raise SystemExit(3)'", "ended with 3: it wrote nothing to"),
    ],
)
def test_a_command_that_prints_no_secret_is_refused(command: str, said: str) -> None:
    told = problem({"HOOKLINE_MASTER_KEY_COMMAND": command})
    assert told.startswith("HOOKLINE_MASTER_KEY_COMMAND ")
    assert said in told


def test_a_command_that_does_not_end_is_given_up_with_the_bound_s_name() -> None:
    told = problem(
        {
            "HOOKLINE_SECRET_COMMAND_TIMEOUT_S": "1",
            "HOOKLINE_MASTER_KEY_COMMAND": printing("import threading; threading.Event().wait()"),
        }
    )
    assert told.endswith(
        "which did not end within 1 s, the bound of HOOKLINE_SECRET_COMMAND_TIMEOUT_S"
    )
