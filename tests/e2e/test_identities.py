"""Callers with certificates and tokens, by a real grpcurl, against `hookline serve`."""

from __future__ import annotations

import json
import pathlib
import subprocess
from collections.abc import Iterator

import pytest

from tests.certificates import Authority
from tests.e2e.processes import Node, run_hookline
from tests.e2e.test_serve import settings
from tests.identity.issuer import AUDIENCE, ISSUER, Issuer
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

SHOP = "spiffe://example.org/shop/orders"
CLIENTS = f"""
[[client]]
uri = "{SHOP}"
scopes = ["publish"]
tenant = "default"

[[client]]
dns = "ops.internal"
scopes = ["operate"]
tenant = "-"
"""
EVENTS = '{"tenant":"tenants/default","events":[{"type":"a.b","json_data":"{}"}]}'
DELIVERIES = '{"tenant":"tenants/default"}'


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


class Site:
    """A node that authenticates callers by certificate and token, and its files."""

    def __init__(
        self, directory: pathlib.Path, issuer: Issuer, database_url: str, grpcurl: pathlib.Path
    ) -> None:
        self.authority = Authority(directory)
        self.clients, self.keys = directory / "clients.toml", directory / "keys.json"
        self.clients.write_text(CLIENTS)
        self.keys.write_bytes(issuer.key_set("RS256"))
        certificate, key = self.authority.issue("server", "127.0.0.1")
        self.variables = settings(database_url) | {
            "HOOKLINE_AUTH": "on",
            "HOOKLINE_TLS_CERT": str(certificate),
            "HOOKLINE_TLS_KEY": str(key),
            "HOOKLINE_TLS_CLIENT_CA": str(self.authority.file),
            "HOOKLINE_TLS_CLIENTS": str(self.clients),
            "HOOKLINE_JWT_ISSUER": ISSUER,
            "HOOKLINE_JWT_AUDIENCE": AUDIENCE,
            "HOOKLINE_JWT_KEYS": str(self.keys),
        }
        self._grpcurl = grpcurl
        self.target = ""

    def call(
        self, identity: str, method: str, request: str, *, token: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """A call over a connection that shows a certificate for `identity`."""
        certificate, key = self.authority.issue("client", identity)
        header = ("-H", f"authorization: Bearer {token}") if token else ()
        return subprocess.run(
            [
                self._grpcurl, "-cacert", self.authority.file, "-cert", certificate, "-key", key,
                *header, "-d", request, self.target, f"hookline.v1.{method}",
            ],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip


@pytest.fixture
def site(
    tmp_path: pathlib.Path, issuer: Issuer, database_url: str, grpcurl: pathlib.Path
) -> Iterator[Site]:
    site = Site(tmp_path, issuer, database_url, grpcurl)
    with Node(["serve"], site.variables) as node:
        site.target = node.ready().target
        yield site
        assert node.stop() == 0


def test_a_certificate_may_do_what_the_file_says(site: Site) -> None:
    published = site.call(SHOP, "EventService/PublishEvents", EVENTS)
    assert json.loads(published.stdout)["results"][0]["deliveryCount"] == 0, published.stderr
    refused = site.call(SHOP, "DeliveryService/ListDeliveries", DELIVERIES)
    assert "Code: PermissionDenied" in refused.stderr
    unlisted = site.call("spiffe://example.org/shop/x", "EventService/PublishEvents", EVENTS)
    assert "Unauthenticated" in unlisted.stderr


def test_a_token_may_do_what_its_issuer_says(site: Site, issuer: Issuer) -> None:
    good = issuer.token("RS256", hookline_tenant="default")
    published = site.call("x.internal", "EventService/PublishEvents", EVENTS, token=good)
    assert "deliveryCount" in published.stdout, published.stderr
    for bad in (issuer.token("RS256", aud="another"), issuer.token("EdDSA"), good[:-4], "hk_1_x"):
        refused = site.call(SHOP, "EventService/PublishEvents", EVENTS, token=bad)
        assert "Unauthenticated" in refused.stderr


async def test_the_files_are_followed(site: Site, issuer: Issuer) -> None:
    ops = ("ops.internal", "DeliveryService/ListDeliveries", DELIVERIES)
    assert site.call(*ops).returncode == 0
    site.clients.write_text(CLIENTS.replace("ops.internal", "ops.example.org"))
    await until(lambda: site.call(*ops).returncode != 0, "the name is struck off")
    token = issuer.token("EdDSA", hookline_tenant="-")
    site.keys.write_bytes(issuer.key_set("RS256", "EdDSA"))

    def counts() -> bool:
        return site.call(*ops, token=token).returncode == 0

    await until(counts, "the new key counts")


def test_status_shows_what_is_followed(site: Site, issuer: Issuer) -> None:
    token = issuer.token("RS256", hookline_tenant="-")
    certificate, key = map(str, site.authority.issue("client", "x.internal"))
    done = run_hookline(
        "status", "--server", site.target, "--ca", str(site.authority.file),
        "--cert", certificate, "--key", key, variables={"HOOKLINE_TOKEN": token},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "follows  HOOKLINE_TLS_CLIENTS  2 clients known by their certificates" in done.stdout
    assert f"follows  HOOKLINE_JWT_KEYS  1 keys from {site.keys}" in done.stdout
