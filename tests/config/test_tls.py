"""TLS settings: valid and invalid combinations, and the remedies that messages name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hookline_service.config import Role, Settings
from tests.certificates import Authority
from tests.config.test_settings import problems


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The variables of a server with TLS that asks its clients for certificates."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "127.0.0.1")
    return {
        "HOOKLINE_TLS_CERT": str(certificate),
        "HOOKLINE_TLS_KEY": str(key),
        "HOOKLINE_TLS_CLIENT_CA": str(authority.file),
    }


def test_all_three_go_together(files: dict[str, str]) -> None:
    tls = Settings.from_environ(files, Role.DEV).tls
    assert tls.files is not None
    assert [str(path) for path in tls.files.paths] == list(files.values())


def test_without_any_gRPC_is_served_in_plaintext() -> None:
    assert Settings.from_environ({}, Role.DEV).tls.files is None


@pytest.mark.parametrize(
    "left_out, message",
    [
        ({"HOOKLINE_TLS_KEY"}, "HOOKLINE_TLS_CERT is set, and HOOKLINE_TLS_KEY is not: name"),
        ({"HOOKLINE_TLS_CERT"}, "HOOKLINE_TLS_KEY is set, and HOOKLINE_TLS_CERT is not: name"),
        (
            {"HOOKLINE_TLS_CERT", "HOOKLINE_TLS_KEY"},
            "HOOKLINE_TLS_CLIENT_CA is set, and HOOKLINE_TLS_CERT is not",
        ),
    ],
    ids=["no-key", "no-certificate", "neither"],
)
def test_incomplete_tls_settings_are_rejected(
    files: dict[str, str], left_out: set[str], message: str
) -> None:
    (problem,) = problems({name: text for name, text in files.items() if name not in left_out})
    assert problem.startswith(message)


def test_unusable_tls_files_are_reported_at_the_start(
    files: dict[str, str], tmp_path: Path
) -> None:
    (problem,) = problems(files | {"HOOKLINE_TLS_CERT": str(tmp_path / "none.pem")})
    assert problem.startswith("HOOKLINE_TLS_CERT names")
    _, key = Authority(tmp_path, "another").issue("another", "127.0.0.1")
    (problem,) = problems(files | {"HOOKLINE_TLS_KEY": str(key)})
    assert "is not the key of the certificate" in problem


@pytest.mark.parametrize("secured", ["tls", "allowed"])
def test_other_hosts_are_served_only_with_tls_or_allowed_plaintext(
    files: dict[str, str], secured: str
) -> None:
    elsewhere = {"HOOKLINE_LISTEN": "0.0.0.0:50051"}
    message = "which other machines reach, in plaintext: set HOOKLINE_TLS_CERT and HOOKLINE_TLS_KEY"
    assert any(message in problem for problem in problems(elsewhere))
    secure = files if secured == "tls" else {"HOOKLINE_ALLOW_PLAINTEXT": "on"}
    assert not any("plaintext" in problem for problem in problems(elsewhere | secure))
