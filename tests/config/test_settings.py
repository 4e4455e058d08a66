"""Settings: defaults, bounds, contradictions, and the report of all problems at once."""

import base64
import os
import re
from pathlib import Path, PurePosixPath

import pytest

from hookline_service.config import ListenAddress, Role, Settings, SettingsError
from hookline_service.config.reading import NOT_OURS
from hookline_service.domain.limits import Limits
from hookline_service.telemetry import LogFormat
from tests.architecture.repository import files, text

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(range(1, 33))).decode()
DATABASE_URL = "postgresql://hookline:hunter2@db.internal/hookline"
SERVE = {
    "HOOKLINE_DATABASE_URL": DATABASE_URL,
    "HOOKLINE_MASTER_KEY": KEY,
    "HOOKLINE_AUTH": "off",
}


def problems(environ: dict[str, str], role: Role = Role.DEV, **flags: str | None) -> list[str]:
    """What is said of these settings, which must be refused."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ(environ, role, flags)
    return list(caught.value.problems)


def test_dev_needs_no_settings() -> None:
    settings = Settings.from_environ({"PATH": "/bin"}, Role.DEV)
    assert settings.listen == ListenAddress("127.0.0.1", 50051)
    assert settings.database_url is None
    assert settings.workers == 1
    assert settings.data_dir == Path(".hookline")
    assert not settings.is_auth_on
    assert settings.limits == Limits()
    assert [str(network) for network in settings.egress.policy.allow] == ["127.0.0.0/8", "::1/128"]


def test_serve_needs_a_database_and_a_key_and_allows_no_loopback_target() -> None:
    settings = Settings.from_environ(SERVE, Role.SERVE)
    assert settings.database_url == DATABASE_URL
    assert settings.master_keys == (bytes(range(32)),)
    assert settings.egress.policy.allow == ()
    assert settings.workers == len(os.sched_getaffinity(0))
    assert settings.log_format is LogFormat.JSON
    messages = problems({"HOOKLINE_AUTH": "off"}, Role.SERVE)
    assert [line.split()[0] for line in messages] == [
        "HOOKLINE_DATABASE_URL",
        "HOOKLINE_MASTER_KEY",
    ]


def test_migrate_needs_only_a_database() -> None:
    url = {"HOOKLINE_DATABASE_URL": DATABASE_URL}
    assert Settings.from_environ(url, Role.MIGRATE).database_url == DATABASE_URL
    assert len(problems({}, Role.MIGRATE)) == 1


def test_all_problems_are_reported_at_once() -> None:
    messages = problems(
        {
            "HOOKLINE_LEASE_S": "soon",
            "HOOKLINE_POOL_SIZE": "1",
            "HOOKLINE_LISTN": "127.0.0.1:1",
            "HOOKLINE_EGRESS_ALLOW": "10.0.0.1/8",
        },
        AUTH="perhaps",
    )
    assert messages == [
        'HOOKLINE_LEASE_S is "soon": must be a number of seconds from 4 to 300',
        'HOOKLINE_EGRESS_ALLOW is "10.0.0.1/8": must be networks such as 10.1.0.0/16,fd00::/8',
        '--auth is "perhaps": must be on or off',
        'HOOKLINE_POOL_SIZE is "1": must be a whole number from 2 to 100',
        "HOOKLINE_LISTN is not a setting of Hookline: did you mean HOOKLINE_LISTEN?",
    ]


def test_unknown_variable_without_a_similar_name_is_rejected_without_a_suggestion() -> None:
    assert problems({"HOOKLINE_QQQ": ""}) == ["HOOKLINE_QQQ is not a setting of Hookline"]


@pytest.mark.parametrize("name", sorted(NOT_OURS))
def test_variables_of_the_client_and_the_tests_are_accepted(name: str) -> None:
    Settings.from_environ({name: "anything"}, Role.DEV)


def test_empty_variable_is_unset_and_empty_flag_is_rejected() -> None:
    settings = Settings.from_environ({"HOOKLINE_LISTEN": "", "HOOKLINE_DATA_DIR": " "}, Role.DEV)
    assert settings.listen.port == 50051
    assert problems({}, DATA_DIR="") == ['--data-dir is "": must be a directory']


def test_flag_overrides_the_environment() -> None:
    flags = {"LISTEN": "[::1]:7", "DATA_DIR": None}
    environ = {"HOOKLINE_LISTEN": "127.0.0.1:8", "HOOKLINE_DATA_DIR": "elsewhere"}
    settings = Settings.from_environ(environ, Role.DEV, flags)
    assert str(settings.listen) == "[::1]:7"
    assert settings.data_dir == Path("elsewhere")


@pytest.mark.parametrize(
    "text",
    ["50051", ":50051", "host:", "host:port", "host:65536", "::1:50051", "[::1]", "a/b:1", "h:-1"],
)
def test_invalid_listen_address_is_rejected(text: str) -> None:
    assert len(problems({"HOOKLINE_LISTEN": text})) == 1


@pytest.mark.parametrize(
    "name, text",
    [
        ("AUTH", "of"),
        ("DATABASE_URL", "mysql://db"),
        ("DATABASE_URL", "db.internal"),
        ("DATABASE_URL", "postgresql://u:p@db:port/hookline"),
        ("DATABASE_URL", "postgres://[::1/hookline"),
        ("DATA_DIR", "a\0b"),
        ("DISABLE_AFTER_DAYS", "0"),
        ("EGRESS_ALLOW", "internal"),
        ("EGRESS_ALLOW", "10.0.0.0/8,"),
        ("HTTPS_ONLY", "1"),
        ("LEASE_S", "nan"),
        ("LEASE_S", "inf"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "loud"),
        ("MASTER_KEY", KEY[:-4]),
        ("MASTER_KEY", f"{KEY},{KEY}"),
        ("MAX_BATCH_EVENTS", "1e3"),
        ("MAX_IN_FLIGHT", "0"),
        ("MAX_IN_FLIGHT", "\u0661\u0660"),
        ("RETENTION_DAYS", "4"),
        ("TLS_CERT", "a\0b"),
        ("WORKERS", "0"),
        ("WORKER_SILENCE_S", "0.5"),
        ("WORKER_SILENCE_S", "off"),
        ("WORKERS", "257"),
    ],
)
def test_problem_of_an_invalid_value_names_its_setting(name: str, text: str) -> None:
    (message,) = problems({f"HOOKLINE_{name}": text})
    assert message.startswith(f"HOOKLINE_{name}")
    assert any(part in message for part in ("must be", "master key"))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"HOOKLINE_LISTEN": "0.0.0.0:1"}, ["HOOKLINE_AUTH is off", "in plaintext"]),
        (
            {"HOOKLINE_LISTEN": "hookline.internal:1", "HOOKLINE_ALLOW_PLAINTEXT": "on"},
            ["HOOKLINE_AUTH is off"],
        ),
        (
            {"HOOKLINE_MAX_DATA_BYTES": "2048", "HOOKLINE_MAX_BATCH_BYTES": "1024"},
            ["HOOKLINE_MAX_DATA_BYTES is 2048, above HOOKLINE_MAX_BATCH_BYTES"],
        ),
        (
            {"HOOKLINE_MAX_BATCH_EVENTS": "9", "HOOKLINE_MAX_QUEUED_PUBLISH_EVENTS": "8"},
            ["HOOKLINE_MAX_BATCH_EVENTS is 9, above"],
        ),
        (
            {"HOOKLINE_PUBLISH_LOCK_WAIT_S": "60", "HOOKLINE_STATEMENT_TIMEOUT_S": "1"},
            ["HOOKLINE_PUBLISH_LOCK_WAIT_S is 60, and HOOKLINE_STATEMENT_TIMEOUT_S 1"],
        ),
    ],
    ids=["anywhere", "allowed", "bytes", "events", "waits"],
)
def test_contradicting_settings_are_rejected(changes: dict[str, str], expected: list[str]) -> None:
    messages = problems(SERVE | changes, Role.SERVE)
    assert len(messages) == len(expected)
    assert all(part in line for part, line in zip(expected, messages, strict=True))


def test_embedded_postgres_requires_one_worker() -> None:
    (message,) = problems({"HOOKLINE_WORKERS": "2"})
    assert message.startswith("HOOKLINE_WORKERS is 2, and HOOKLINE_DATABASE_URL is not set")
    both = {"HOOKLINE_WORKERS": "2", "HOOKLINE_DATABASE_URL": DATABASE_URL}
    assert Settings.from_environ(both, Role.DEV).workers == 2


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "127.8.8.8:1", "localhost:1"])
def test_loopback_is_served_without_authentication(listen: str) -> None:
    environ = SERVE | {"HOOKLINE_LISTEN": listen}
    assert str(Settings.from_environ(environ, Role.SERVE).listen) == listen


def test_authentication_is_on_by_default_and_allows_any_address() -> None:
    environ = SERVE | {
        "HOOKLINE_AUTH": "",
        "HOOKLINE_LISTEN": "0.0.0.0:1",
        "HOOKLINE_ALLOW_PLAINTEXT": "on",
    }
    assert Settings.from_environ(environ, Role.SERVE).is_auth_on
    assert not Settings.from_environ({}, Role.DEV).is_auth_on


@pytest.mark.parametrize(
    "url",
    [
        "postgres://",
        "postgresql://user@/hookline?host=/run/postgresql",
        "postgresql://user:pass@[::1]:5432/hookline",
        "postgresql://user:p%40ss@a.internal:1,b.internal:2/hookline?target_session_attrs=primary",
    ],
)
def test_database_urls_of_libpq_are_accepted(url: str) -> None:
    assert Settings.from_environ({"HOOKLINE_DATABASE_URL": url}, Role.DEV).database_url == url


def test_several_master_keys_and_networks_are_parsed() -> None:
    changes = {
        "HOOKLINE_MASTER_KEY": f"{OTHER_KEY}, {KEY}",
        "HOOKLINE_EGRESS_ALLOW": "10.1.0.0/16, fd00::/8",
    }
    settings = Settings.from_environ(SERVE | changes, Role.SERVE)
    assert settings.master_keys == (bytes(range(1, 33)), bytes(range(32)))
    assert [str(network) for network in settings.egress.policy.allow] == ["10.1.0.0/16", "fd00::/8"]


def test_secrets_are_never_shown() -> None:
    shown = repr(Settings.from_environ(SERVE, Role.SERVE))
    messages = problems(
        {"HOOKLINE_DATABASE_URL": "mysql://u:hunter2@db", "HOOKLINE_MASTER_KEY": KEY[1:]}
    )
    for line in (shown, *messages):
        assert "hunter2" not in line
        assert KEY[1:] not in line


def test_every_limit_is_a_setting() -> None:
    environ = {
        f"HOOKLINE_{name.upper()}": str(getattr(Limits(), name) - 1)
        for name in Limits.__dataclass_fields__
        if name not in {"max_page_size", "default_page_size"}
    }
    limits = Settings.from_environ(environ, Role.DEV).limits
    assert {f"HOOKLINE_{n.upper()}": str(getattr(limits, n)) for n in limits.__slots__}.items() >= (
        environ.items()
    )


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in files()
        if (path.suffix in {".py", ".proto", ".md", ".sql"} and path.parts[0] != "tests")
    ],
    ids=str,
)
def test_every_variable_named_in_the_repository_exists(path: PurePosixPath) -> None:
    named = set(re.findall(r"HOOKLINE_[A-Z][A-Z0-9_]*[A-Z0-9]", text(path)))
    assert named <= Settings.variables() | NOT_OURS
