"""Callers authenticated by a client certificate, or by a token of an issuer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from hookline.v1.access_service_pb2 import ListAuditEntriesRequest
from hookline.v1.access_service_pb2_grpc import AccessServiceStub
from hookline.v1.subscription_service_pb2 import (
    CreateSubscriptionRequest,
    DeleteSubscriptionRequest,
    ListSubscriptionsRequest,
)
from hookline.v1.tenant_service_pb2 import (
    CreateTenantRequest,
    DeleteTenantRequest,
    GetTenantRequest,
)
from hookline.v1.tenant_service_pb2_grpc import TenantServiceStub
from hookline_service.api.middleware.authentication import (
    CertificateSource,
    IdentitySource,
    TokenSource,
)
from hookline_service.api.server import ApiServer
from hookline_service.api.tls import server_credentials
from hookline_service.domain.caller import Caller, Scope
from hookline_service.domain.limits import Limits
from hookline_service.identity.client_names import ClientNames
from hookline_service.identity.grants import Grant
from hookline_service.identity.key_set import parse_key_set
from hookline_service.identity.server_certificate import CertificateFiles, read_server_certificate
from hookline_service.identity.tokens import Tokens
from tests.api.conftest import CLIENT_OPTIONS, Api, servicers_of
from tests.api.control import controlling, orders
from tests.api.identities import HeaderSource, RecordingTenants
from tests.api.identities import caller as asker
from tests.api.refusals import refusal
from tests.certificates import Authority
from tests.identity.issuer import Issuer
from tests.identity.test_tokens import RULES, Keys

SPIFFE = "spiffe://example.org/shop/orders"
NAMES = ClientNames(
    {
        ("uri", SPIFFE): Grant(frozenset({Scope.MANAGE}), "acme"),
        ("dns", "ops.internal"): Grant(frozenset(Scope), None),
        ("email", "jo@example.org"): Grant(frozenset({Scope.PUBLISH}), None),
    }
)


class Gateway:
    """A server that requests client certificates, and calls with certificates of the test."""

    def __init__(self, port: int, authority: Authority, asking: RecordingTenants) -> None:
        self._port = port
        self._authority = authority
        self._asking = asking

    @asynccontextmanager
    async def channel(self, *identities: str) -> AsyncIterator[grpc.aio.Channel]:
        """Open a channel with a client certificate that has these names."""
        certificate, key = self._authority.issue("client", *identities)
        credentials = grpc.ssl_channel_credentials(
            self._authority.pem, key.read_bytes(), certificate.read_bytes()
        )
        target = f"127.0.0.1:{self._port}"
        async with grpc.aio.secure_channel(target, credentials, CLIENT_OPTIONS) as channel:
            yield channel

    async def call(self, channel: grpc.aio.Channel, *authorization: str) -> Any:  # noqa: ANN401 - an answer
        metadata = tuple(("authorization", text) for text in authorization)
        request = GetTenantRequest(name="tenants/acme")
        return await TenantServiceStub(channel).GetTenant(request, metadata=metadata, timeout=20)

    async def caller(self, channel: grpc.aio.Channel, *authorization: str) -> Caller:
        """Return the caller that a call runs for."""
        await self.call(channel, *authorization)
        return self._asking.callers.pop()

    async def refused(self, channel: grpc.aio.Channel, *authorization: str) -> None:
        """Assert that the call is unauthenticated."""
        answer = await refusal(self.call(channel, *authorization))
        assert answer.code is grpc.StatusCode.UNAUTHENTICATED
        assert answer.reason == "UNAUTHENTICATED"


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def known() -> list[ClientNames]:
    """The names that are authorized; a test may add more."""
    return [NAMES]


@pytest.fixture
async def gateway(
    api: Api, tmp_path: Path, issuer: Issuer, known: list[ClientNames]
) -> AsyncIterator[Gateway]:
    authority, asking = Authority(tmp_path), RecordingTenants()
    certificate = read_server_certificate(
        CertificateFiles(*authority.issue("server", "127.0.0.1"), authority.file)
    )
    identities: Sequence[IdentitySource] = [
        TokenSource(Tokens(RULES, Keys(parse_key_set(issuer.key_set(), "keys.json")))),
        CertificateSource(lambda: known[-1]),
    ]
    server = ApiServer(
        servicers_of(api.rig, tenants=asking),
        address="127.0.0.1:0",
        limits=Limits(),
        identities=identities,
        credentials=server_credentials(lambda: certificate),
    )
    yield Gateway(await server.start(), authority, asking)
    await server.stop(0)


@pytest.mark.parametrize(
    "shown, principal, tenant",
    [
        ([SPIFFE], f"uri:{SPIFFE}", "acme"),
        (["ops.internal"], "dns:ops.internal", None),
        (["x.internal", "ops.internal", SPIFFE], f"uri:{SPIFFE}", "acme"),
        (["https://example.org/x", "ops.internal"], "dns:ops.internal", None),
    ],
    ids=["uri", "dns", "uri-first", "what-is-listed"],
)
async def test_certificate_identifies_its_caller(
    gateway: Gateway, shown: list[str], principal: str, tenant: str | None
) -> None:
    async with gateway.channel(*shown) as channel:
        caller = await gateway.caller(channel)
    assert (caller.principal, caller.tenant_id) == (principal, tenant)
    assert caller.method.endswith("TenantService/GetTenant")
    assert caller.expire_time is not None
    assert timedelta(days=89) < caller.expire_time - datetime.now(UTC) < timedelta(days=91)


async def test_a_certificate_without_the_scope_is_refused(gateway: Gateway) -> None:
    async with gateway.channel("jo@example.org") as channel:
        answer = await refusal(gateway.call(channel))
    assert answer.code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "shown", [["other.internal"], ["127.0.0.1"], ["spiffe://example.org/shop"]], ids=str
)
async def test_unlisted_certificate_is_unauthenticated(gateway: Gateway, shown: list[str]) -> None:
    async with gateway.channel(*shown) as channel:
        await gateway.refused(channel)


@pytest.mark.parametrize(
    "shown",
    [
        ["ops.internal\0.evil.com"],
        [f"{SPIFFE}\0/evil"],
        ["ops.internal", "other\0.internal"],
        ["ops.internal\n"],
    ],
    ids=["dns", "uri", "beside-a-good-name", "line-feed"],
)
async def test_a_certificate_with_a_control_character_in_a_name_is_unauthenticated(
    gateway: Gateway, shown: list[str]
) -> None:
    """GRPC hands names on as C strings, which end at a NUL: `ops.internal` is all that it shows."""
    async with gateway.channel(*shown) as channel:
        await gateway.refused(channel)


async def test_a_removed_certificate_is_unauthenticated_on_an_open_connection(
    gateway: Gateway, known: list[ClientNames]
) -> None:
    async with gateway.channel("ops.internal") as channel:
        await gateway.caller(channel)
        known.append(ClientNames({}))
        await gateway.refused(channel)


async def test_a_token_decides_before_a_certificate_even_if_invalid(
    gateway: Gateway, issuer: Issuer
) -> None:
    good = issuer.token(scope="hookline:manage")
    async with gateway.channel("ops.internal") as channel:
        assert (await gateway.caller(channel, f"Bearer {good}")).principal == "sub:orders@shop"
        assert (await gateway.caller(channel)).principal == "dns:ops.internal"
        for bad in (f"Bearer {good[:-4]}", "Bearer hk_1_secret", "Bearer ", "Basic eDp5", ""):
            await gateway.refused(channel, bad)
        await gateway.refused(channel, f"Bearer {good}", f"Bearer {good}")


async def test_a_caller_bound_by_id_finds_nothing_of_a_deleted_tenant_of_that_id(
    database_url: str,
) -> None:
    source = HeaderSource(boss=asker(), bound=asker(Scope.OPERATE, tenant="acme"))
    boss, bound = (("caller", "boss"),), (("caller", "bound"),)
    one = ListSubscriptionsRequest(tenant="tenants/acme")
    async with controlling(database_url, identities=[source]) as control:
        made = CreateSubscriptionRequest(tenant="tenants/acme", subscription=orders())
        name = (await control.subscriptions.CreateSubscription(made, metadata=boss)).subscription
        assert (await control.subscriptions.ListSubscriptions(one, metadata=bound)).subscriptions

        deleted = DeleteSubscriptionRequest(name=name.name)
        await control.subscriptions.DeleteSubscription(deleted, metadata=boss)
        gone = DeleteTenantRequest(name="tenants/acme")
        await control.tenants.DeleteTenant(gone, metadata=boss)
        answer = await refusal(control.subscriptions.ListSubscriptions(one, metadata=bound))
        assert answer.code is grpc.StatusCode.NOT_FOUND

        anew = CreateTenantRequest(tenant_id="acme")
        await control.tenants.CreateTenant(anew, metadata=boss)
        found = await control.subscriptions.ListSubscriptions(one, metadata=bound)
        assert not found.subscriptions
        entries = ListAuditEntriesRequest(tenant="tenants/acme")
        log = AccessServiceStub(control.channel)
        entries_found = (await log.ListAuditEntries(entries, metadata=boss)).audit_entries
        assert [entry.method.rpartition("/")[2] for entry in entries_found] == ["CreateTenant"]
