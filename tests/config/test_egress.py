"""Egress settings: parsing, rejected values, and credentials that are never shown."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest
import trustme

from hookline_service.config import Role, Settings, SettingsError


def egress(**variables: str) -> Settings:
    """Settings with these HOOKLINE_EGRESS_ variables."""
    return Settings.from_environ(
        {f"HOOKLINE_EGRESS_{name}": value for name, value in variables.items()}, Role.MIGRATE
    )


def problem(**variables: str) -> str:
    """What is said of them, which must be refused for one reason; the database's lack apart."""
    with pytest.raises(SettingsError) as caught:
        egress(**variables)
    [message] = [line for line in caught.value.problems if "EGRESS" in line]
    return message


@pytest.fixture(autouse=True)
def database(monkeypatch: pytest.MonkeyPatch) -> None:
    """`migrate` asks for a database and nothing else, so that what is wrong here stands alone."""
    read = Settings.from_environ

    def with_database(environ: dict[str, str], role: Role) -> Settings:
        return read({"HOOKLINE_DATABASE_URL": "postgresql://db/hookline", **environ}, role)

    monkeypatch.setattr(Settings, "from_environ", with_database)


def test_network_and_host_lists_are_parsed() -> None:
    policy = egress(
        ALLOW="10.1.0.0/16",
        DENY="10.1.9.0/24, 8.8.8.0/24",
        PUBLIC="off",
        ALLOW_HOSTS="hooks.example, *.partner.example,10.1.2.3",
        DENY_HOSTS="bad.partner.example",
    ).egress.policy
    assert [str(network) for network in policy.deny] == ["10.1.9.0/24", "8.8.8.0/24"]
    assert policy.allows("10.1.2.3")
    assert not policy.allows("10.1.9.1")
    assert not policy.allows("9.9.9.9")
    assert policy.allows_host("a.partner.example")
    assert not policy.allows_host("bad.partner.example")
    assert not policy.allows_host("elsewhere.example")


def test_port_lists_are_parsed() -> None:
    policy = egress().egress.policy
    assert [port for port in (25, 80, 443, 1024, 5432) if policy.allows_port(port)] == [
        80,
        443,
        1024,
    ]
    policy = egress(PORTS="25, 5000-6000", DENY_PORTS="none").egress.policy
    assert [port for port in (25, 80, 5432) if policy.allows_port(port)] == [25, 5432]
    assert problem(PORTS="0") == (
        'HOOKLINE_EGRESS_PORTS is "0": must be ports such as 80,443,1024-65535'
    )
    assert "must be none, or ports" in problem(DENY_PORTS="mysql")


def test_nat64_prefixes_are_parsed() -> None:
    policy = egress(NAT64="2606:4700:64::/96, 2606:4700::/32").egress.policy
    assert policy.allows("2606:4700:64::8.8.8.8")
    assert not policy.allows("2606:4700:64::10.0.0.1")
    assert "32, 40, 48, 56, 64, 96 bits" in problem(NAT64="2606:4700:64::/95")


def test_proxy_is_parsed_and_its_credentials_are_never_shown() -> None:
    settings = egress(PROXY="http://out:s%40cr%3At@proxy.internal:3128/", PROXY_RESOLVES="on")
    proxy = settings.egress.proxy
    assert proxy is not None
    assert (proxy.host, proxy.port, proxy.resolves) == ("proxy.internal", 3128, True)
    assert proxy.authorization == f"Basic {b64encode(b'out:s@cr:t').decode()}"
    for secret in ("s@cr:t", "s%40cr", proxy.authorization):
        assert secret not in repr(settings)
    assert egress(PROXY="http://[fd00::1]:3128").egress.proxy is not None


@pytest.mark.parametrize(
    "text",
    [
        "proxy.internal:3128",
        "https://proxy.internal:3128",
        "http://proxy.internal",
        "http://proxy.internal:0",
        "http://proxy.internal:3128/path",
        "hunter2://proxy.internal:3128",
        "http://hunter2@proxy.internal:3128",
        "http://:hunter2@proxy.internal:3128",
        "http://out%3a:hunter2@proxy.internal:3128",
        "http://out:hunter2%0d%0a@proxy.internal:3128",
        "http://out:hunter2@proxy internal:3128",
        "http://out:hunter2@0x7f.1:3128",
        "socks5://out:hunter2@proxy.internal:1080",
        "http://",
    ],
)
def test_invalid_proxy_is_rejected_without_showing_its_credentials(text: str) -> None:
    message = problem(PROXY=text)
    assert message.startswith("HOOKLINE_EGRESS_PROXY: must ")
    assert "hunter2" not in message


def test_settings_that_allow_no_target_are_rejected() -> None:
    assert "HOOKLINE_EGRESS_ALLOW is not set" in problem(PUBLIC="off")
    assert not egress(PUBLIC="off", ALLOW="10.0.0.0/8").egress.policy.allows("8.8.8.8")


def test_resolution_by_the_proxy_without_a_proxy_is_rejected() -> None:
    assert "HOOKLINE_EGRESS_PROXY is not set" in problem(PROXY_RESOLVES="on")


def test_authorities_are_read_when_the_service_starts(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    assert egress(CA_FILE=str(path)).egress.ca_file == path
    empty = tmp_path / "empty.pem"
    empty.touch()
    for wrong in (empty, tmp_path, tmp_path / "missing.pem", Path(__file__)):
        assert "must be a file" in problem(CA_FILE=str(wrong))


@pytest.mark.parametrize("name", ["DENY_HOSTS", "ALLOW_HOSTS"])
@pytest.mark.parametrize("text", ["*", "http://hooks.example", "hooks.example:443", "a,,b"])
def test_invalid_host_list_setting_is_rejected(name: str, text: str) -> None:
    assert "must be hosts such as hooks.example,*.internal.example" in problem(**{name: text})


@pytest.mark.parametrize("text", ["example", "10.0.0.1/8", ""])
def test_invalid_network_list_setting_is_rejected(text: str) -> None:
    if text:
        assert "must be networks such as 10.1.0.0/16,fd00::/8" in problem(DENY=text)
    else:
        assert egress(DENY=text).egress.policy.deny == ()
