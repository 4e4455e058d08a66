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
    (message,) = caught.value.problems
    return message


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
    message = tmp_path / "printed"
    message.write_text(KEY + "\n")
    environ = {
        "PATH": os.environ["PATH"],
        "HOOKLINE_MASTER_KEY_COMMAND": f"cat '{message}'",
        "HOOKLINE_DATABASE_URL_COMMAND": f"printf %s {URL}",
        "HOOKLINE_EGRESS_PROXY_COMMAND": f"printf %s {PROXY}",
    }
    settings = Settings.from_environ(environ, Role.SERVE)
    assert settings.master_keys == (bytes(range(32)),)
    assert settings.database_url == URL
    assert settings.egress.proxy is not None


def test_command_gets_the_environment_and_runs_without_a_shell() -> None:
    code = 'import os, sys; print(os.environ["KEY"] if sys.argv[1:] == ["$KEY", ";"] else "")'
    environ = {"KEY": KEY, "HOOKLINE_MASTER_KEY_COMMAND": f"{printing(code)} $KEY ';'"}
    assert Settings.from_environ(environ, Role.DEV).master_keys == (bytes(range(32)),)


def test_migrate_does_not_run_the_master_key_command() -> None:
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
def test_two_sources_of_one_secret_are_rejected(names: tuple[str, str]) -> None:
    first, second = (f"HOOKLINE_{name}" for name in names)
    message = problem({first: KEY, second: "/nowhere"})
    assert message == f"{first} and {second} are set: set one of them"


def test_empty_variable_is_unset(tmp_path: Path) -> None:
    environ = {
        "HOOKLINE_MASTER_KEY": "",
        "HOOKLINE_MASTER_KEY_FILE": secret_file(tmp_path, KEY),
        "HOOKLINE_MASTER_KEY_COMMAND": " ",
    }
    assert Settings.from_environ(environ, Role.DEV).master_keys == (bytes(range(32)),)


@pytest.mark.parametrize("mode", [0o444, 0o644, 0o442, 0o441])
def test_secret_file_accessible_to_others_is_rejected(tmp_path: Path, mode: int) -> None:
    message = problem({"HOOKLINE_MASTER_KEY_FILE": secret_file(tmp_path, KEY, mode)})
    assert f"its mode is {mode:04o}" in message
    assert "chmod 0440" in message
    assert KEY not in message


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
def test_secret_file_without_a_secret_is_rejected(
    tmp_path: Path, content: bytes, said: str
) -> None:
    message = problem({"HOOKLINE_MASTER_KEY_FILE": secret_file(tmp_path, content)})
    assert message.startswith(f"HOOKLINE_MASTER_KEY_FILE names {tmp_path}/secret, which ")
    assert message.endswith(said)


def test_unreadable_secret_file_is_rejected(tmp_path: Path) -> None:
    message = problem({"HOOKLINE_MASTER_KEY_FILE": str(tmp_path / "missing")})
    assert message.endswith("/missing, which cannot be read: No such file or directory")
    message = problem({"HOOKLINE_MASTER_KEY_FILE": str(tmp_path)})
    assert message.endswith("which cannot be read: Is a directory")
    assert "cannot be read" in problem({"HOOKLINE_MASTER_KEY_FILE": "a\0b"})


def test_secret_from_a_source_is_validated_and_never_shown(tmp_path: Path) -> None:
    wrong = f"{KEY[:-4]}hunter2"
    message = problem({"HOOKLINE_MASTER_KEY_FILE": secret_file(tmp_path, wrong)})
    assert message.startswith("HOOKLINE_MASTER_KEY_FILE: ")
    assert "hunter2" not in message
    message = problem({"HOOKLINE_DATABASE_URL_COMMAND": printing('print("mysql://u:hunter2@db")')})
    assert message.startswith("HOOKLINE_DATABASE_URL_COMMAND: must be a URL")
    assert "hunter2" not in message


def test_failed_secret_command_is_reported_with_its_error_output() -> None:
    code = 'import sys; print("hunter2"); sys.exit("first\\nAccessDenied: \\33[1m no such key")'
    message = problem({"HOOKLINE_MASTER_KEY_COMMAND": printing(code)})
    assert message == (
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
def test_secret_command_without_a_secret_is_rejected(command: str, said: str) -> None:
    message = problem({"HOOKLINE_MASTER_KEY_COMMAND": command})
    assert message.startswith("HOOKLINE_MASTER_KEY_COMMAND ")
    assert said in message


def test_secret_command_that_does_not_end_is_stopped_at_its_timeout() -> None:
    message = problem(
        {
            "HOOKLINE_SECRET_COMMAND_TIMEOUT_S": "1",
            "HOOKLINE_MASTER_KEY_COMMAND": printing("import threading; threading.Event().wait()"),
        }
    )
    assert message.endswith(
        "which did not end within 1 s, the bound of HOOKLINE_SECRET_COMMAND_TIMEOUT_S"
    )
