"""Settings that identify callers: tokens of an issuer, names in client certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hookline_service.config import Role, Settings
from tests.certificates import Authority
from tests.config.test_settings import problems
from tests.identity.issuer import Issuer


@pytest.fixture(scope="module")
def key_set() -> bytes:
    return Issuer().key_set()


@pytest.fixture
def tokens(tmp_path: Path, key_set: bytes) -> dict[str, str]:
    """The variables by which tokens count."""
    path = tmp_path / "keys.json"
    path.write_bytes(key_set)
    return {
        "HOOKLINE_AUTH": "on",
        "HOOKLINE_JWT_ISSUER": "https://login.example.org/",
        "HOOKLINE_JWT_AUDIENCE": "hookline",
        "HOOKLINE_JWT_KEYS": str(path),
    }


@pytest.fixture
def clients(tmp_path: Path) -> dict[str, str]:
    """Return the variables that map client certificates to grants."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "127.0.0.1")
    listed = tmp_path / "clients.toml"
    listed.write_text('[[client]]\ndns = "a.internal"\nscopes = ["publish"]\ntenant = "-"\n')
    return {
        "HOOKLINE_AUTH": "on",
        "HOOKLINE_TLS_CERT": str(certificate),
        "HOOKLINE_TLS_KEY": str(key),
        "HOOKLINE_TLS_CLIENT_CA": str(authority.file),
        "HOOKLINE_TLS_CLIENTS": str(listed),
    }


def test_settings_of_a_token_issuer_are_parsed(tokens: dict[str, str]) -> None:
    settings = Settings.from_environ(tokens, Role.DEV).tokens
    assert settings.rules is not None
    assert settings.rules.scopes_claim == "scope"
    assert settings.rules.tenant_claim == "hookline_tenant"
    assert settings.rules.leeway_s == 30


@pytest.mark.parametrize("left_out", ["ISSUER", "AUDIENCE", "KEYS"])
def test_issuer_audience_and_keys_are_required_together(
    tokens: dict[str, str], left_out: str
) -> None:
    del tokens[f"HOOKLINE_JWT_{left_out}"]
    message = problems(tokens)
    assert any(line.startswith(f"HOOKLINE_JWT_{left_out} must be set, too") for line in message)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"JWT_KEYS": "http://login.example.org/keys"}, "must be a file or an https:// URL"),
        ({"JWT_KEYS": "https://user:pw@login.example.org/keys"}, "must be a file or an https://"),
        ({"JWT_KEYS": "/nowhere/keys.json"}, "names /nowhere/keys.json, which cannot be read"),
        ({"JWT_SCOPES_CLAIM": "x" * 256}, "must be a claim's name"),
        ({"JWT_LEEWAY_S": "301"}, "must be a number of seconds from 0 to 300"),
        ({"AUTH": "off"}, "HOOKLINE_JWT_ISSUER is set, which then counts for nothing"),
    ],
    ids=["http", "userinfo", "missing", "claim", "leeway", "auth"],
)
def test_invalid_token_setting_is_reported(
    tokens: dict[str, str], changes: dict[str, str], message: str
) -> None:
    (problem,) = problems(tokens | {f"HOOKLINE_{name}": text for name, text in changes.items()})
    assert message in problem


@pytest.mark.parametrize("url", ["https://login.example.org/keys", "http://127.0.0.1:8080/keys"])
def test_issuer_keys_can_be_a_url(tokens: dict[str, str], url: str) -> None:
    assert Settings.from_environ(tokens | {"HOOKLINE_JWT_KEYS": url}, Role.DEV).tokens.keys == url


def test_settings_of_client_certificate_names_are_parsed(clients: dict[str, str]) -> None:
    assert Settings.from_environ(clients, Role.DEV).tls.clients is not None


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("HOOKLINE_TLS_CLIENT_CA"), "HOOKLINE_TLS_CLIENT_CA is not"),
        (lambda c: c.update(HOOKLINE_AUTH="off"), "HOOKLINE_TLS_CLIENTS is set, which then counts"),
        (
            lambda c: Path(c["HOOKLINE_TLS_CLIENTS"]).write_text("[[client]]", encoding="utf-8"),
            "[[client]] 1: needs one of uri, dns and email",
        ),
        (
            lambda c: c.update(HOOKLINE_TLS_CLIENTS="/nowhere"),
            "HOOKLINE_TLS_CLIENTS names /nowhere, which cannot be read",
        ),
    ],
    ids=["no-authority", "auth", "wrong", "missing"],
)
def test_invalid_client_name_setting_is_reported(
    clients: dict[str, str],
    change: Any,  # noqa: ANN401 - a lambda
    message: str,
) -> None:
    change(clients)
    (problem,) = problems(clients)
    assert message in problem
