"""The file of client certificate names and their grants: parsing, errors and lookup."""

from __future__ import annotations

from pathlib import Path

import pytest

from hookline_service.domain.caller import Scope
from hookline_service.identity.client_names import (
    ClientNames,
    read_client_certificate,
    read_client_names,
)
from hookline_service.identity.files import SourceError
from hookline_service.identity.grants import Grant
from tests.certificates import Authority

GOOD = """
[[client]]
uri = "spiffe://example.org/shop/orders"
scopes = ["publish"]
tenant = "acme"

[[client]]
dns = "Ops.internal"
scopes = ["operate", "MANAGE"]
tenant = "-"

[[client]]
email = "jo@example.org"
scopes = ["admin"]
tenant = "-"
"""


def read(tmp_path: Path, text: str) -> ClientNames:
    path = tmp_path / "clients.toml"
    path.write_text(text)
    return read_client_names(path)


def test_listed_name_has_its_grant(tmp_path: Path) -> None:
    names = read(tmp_path, GOOD)
    assert names.grants == {
        ("uri", "spiffe://example.org/shop/orders"): Grant(frozenset({Scope.PUBLISH}), "acme"),
        ("dns", "ops.internal"): Grant(frozenset({Scope.OPERATE, Scope.MANAGE}), None),
        ("email", "jo@example.org"): Grant(frozenset({Scope.ADMIN}), None),
    }
    assert names.summary == "3 clients known by their certificates"


@pytest.mark.parametrize(
    "shown, found",
    [
        (
            [("uri", "spiffe://example.org/shop/orders")],
            ("uri", "spiffe://example.org/shop/orders"),
        ),
        ([("uri", "spiffe://example.org/x"), ("dns", "OPS.INTERNAL")], ("dns", "ops.internal")),
        ([("dns", "ops.internal"), ("email", "jo@example.org")], ("dns", "ops.internal")),
        ([("uri", "spiffe://example.org/SHOP/orders")], None),
        ([("uri", "spiffe://example.org/shop/orders/")], None),
        ([("dns", "jo@example.org")], None),
        ([("dns", "x.ops.internal"), ("dns", "*.internal")], None),
        ([], None),
    ],
    ids=["uri", "second", "first", "case", "longer", "kind", "other", "none"],
)
def test_first_listed_name_of_a_certificate_is_used(
    tmp_path: Path, shown: list[tuple[str, str]], found: tuple[str, str] | None
) -> None:
    answer = read(tmp_path, GOOD).find(shown)
    assert (answer and answer[0]) == found


def test_empty_file_grants_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "").find([("dns", "ops.internal")]) is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("[[client]", "is not TOML"),
        ("[client]\ndns = 'a'", "holds something else than"),
        ("client = [1]", "holds something else than"),
        ("[[clients]]\ndns = 'a'", "holds something else than"),
        ("[[client]]\nscopes = ['publish']\ntenant = '-'", "1: needs one of uri, dns and email"),
        (
            "[[client]]\ndns = 'a'\nuri = 'b'\nscopes = ['publish']\ntenant = '-'",
            "needs one of uri, dns and email, and no more",
        ),
        (
            "[[client]]\ndns = \"a\\u0000.b\"\nscopes = ['publish']\ntenant = '-'",
            "dns must consist of printable ASCII characters",
        ),
        ("[[client]]\ndns = ''\nscopes = ['publish']\ntenant = '-'", "dns must be a text"),
        ("[[client]]\ndns = 'a'\ntenant = '-'", "scopes must be a list, and not empty"),
        ("[[client]]\ndns = 'a'\nscopes = []\ntenant = '-'", "scopes must be a list"),
        ("[[client]]\ndns = 'a'\nscopes = 'publish'\ntenant = '-'", "scopes must be a list"),
        (
            "[[client]]\ndns = 'a'\nscopes = ['everything']\ntenant = '-'",
            "scopes must be among publish, consume, manage, operate, admin",
        ),
        ("[[client]]\ndns = 'a'\nscopes = ['publish']", "tenant must be there"),
        (
            "[[client]]\ndns = 'a'\nscopes = ['publish']\ntenant = ''",
            'tenant must be an id, or "-" for all',
        ),
        ("[[client]]\ndns = 'a'\nscopes = ['publish']\ntenant = 'Acme'", "tenant must be an id"),
        ("[[client]]\ndns = 'a'\nscope = ['publish']\ntenant = '-'", "scope is not known here"),
        (GOOD + GOOD, "4: uri = .* stands there twice"),
        (
            "client=[{dns='a',scopes=['admin'],tenant='-'},{dns='A',scopes=['admin'],tenant='-'}]",
            '2: dns = "A" stands there twice',
        ),
    ],
)
def test_invalid_client_name_file_is_reported(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith("HOOKLINE_TLS_CLIENTS names ")


def test_unreadable_or_nameless_certificate_has_no_grant(tmp_path: Path) -> None:
    assert read_client_certificate(b"") is None
    authority = Authority(tmp_path)
    assert read_client_certificate(authority.pem) is None
    certificate, _ = authority.issue("client", "b.example", "a@b.example", "spiffe://b/c", "::1")
    read = read_client_certificate(certificate.read_bytes())
    assert read is not None
    assert read.names == [("uri", "spiffe://b/c"), ("dns", "b.example"), ("email", "a@b.example")]
