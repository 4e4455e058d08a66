"""AccessService: API keys are created, listed and revoked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from hookline.v1.access_service_pb2 import (
    CreateApiKeyRequest,
    CreateApiKeyResponse,
    ListApiKeysRequest,
    RevokeApiKeyRequest,
)
from hookline.v1.access_service_pb2_grpc import AccessServiceStub
from hookline.v1.api_key_pb2 import (
    API_KEY_SCOPE_ADMIN,
    API_KEY_SCOPE_OPERATE,
    API_KEY_SCOPE_PUBLISH,
    ApiKey,
    ApiKeyScope,
)
from hookline.v1.tenant_service_pb2 import ListTenantsRequest
from hookline.v1.tenant_service_pb2_grpc import TenantServiceStub
from hookline_service.api.access.service import AccessServicer
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.middleware.methods import METHODS
from hookline_service.api.middleware.scopes import AUTHENTICATED
from hookline_service.domain.caller import Scope
from hookline_service.domain.limits import Limits
from hookline_service.store.audit import AuditLog
from tests.api.conftest import PAGE_KEY, serving
from tests.api.identities import HeaderSource, caller
from tests.api.keyed import Keyed, bearer, keyed
from tests.api.refusals import refusal

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def gateway(database_url: str) -> AsyncIterator[Keyed]:
    async with keyed(database_url) as gateway:
        yield gateway


@pytest.fixture
async def boss(gateway: Keyed) -> Access:
    return Access(gateway, await gateway.token())


class Access:
    """The calls of AccessService, made with one token."""

    def __init__(self, gateway: Keyed, token: str) -> None:
        self._stub = AccessServiceStub(gateway.channel)
        self._metadata = bearer(token)

    async def create(self, **fields: Any) -> CreateApiKeyResponse:  # noqa: ANN401 (any field)
        values: dict[str, Any] = {"scopes": [API_KEY_SCOPE_PUBLISH]}
        return await self._stub.CreateApiKey(
            CreateApiKeyRequest(api_key=ApiKey(**(values | fields))), metadata=self._metadata
        )

    async def names(self, **fields: Any) -> tuple[list[str], str]:  # noqa: ANN401 (any field)
        page = await self._stub.ListApiKeys(ListApiKeysRequest(**fields), metadata=self._metadata)
        return [key.display_name for key in page.api_keys], page.next_page_token

    async def revoke(self, name: str) -> ApiKey:
        answer = await self._stub.RevokeApiKey(
            RevokeApiKeyRequest(name=name), metadata=self._metadata
        )
        return answer.api_key


async def test_token_of_a_created_key_is_accepted(gateway: Keyed, boss: Access) -> None:
    expire_time = Timestamp(seconds=4_000_000_000)
    made = await boss.create(
        display_name="billing",
        tenant="tenants/acme",
        scopes=[API_KEY_SCOPE_OPERATE, API_KEY_SCOPE_ADMIN, API_KEY_SCOPE_OPERATE],
        expire_time=expire_time,
        name="apiKeys/ignored",
        last_use_time=expire_time,
        revoke_time=expire_time,
    )
    key = made.api_key
    assert made.token.startswith(f"hk_{key.name.removeprefix('apiKeys/')}_")
    assert (key.display_name, key.tenant) == ("billing", "tenants/acme")
    assert list(key.scopes) == [API_KEY_SCOPE_OPERATE, API_KEY_SCOPE_ADMIN]
    assert key.expire_time == expire_time
    assert key.HasField("create_time")
    assert not key.HasField("last_use_time")
    assert not key.HasField("revoke_time")
    await TenantServiceStub(gateway.channel).ListTenants(
        ListTenantsRequest(), metadata=bearer(made.token)
    )


async def test_token_is_not_stored_in_clear_text(gateway: Keyed, boss: Access) -> None:
    token = (await boss.create()).token
    rows = await gateway.control.rig.database.fetch("SELECT to_jsonb(k)::text FROM api_keys k")
    secret = token.rpartition("_")[2]
    assert [row for row in rows if secret in row[0] or secret.encode().hex() in row[0]] == []


@pytest.mark.parametrize(
    "fields, violations",
    [
        ({"scopes": []}, {"api_key.scopes": "FIELD_REQUIRED"}),
        ({"scopes": [0]}, {"api_key.scopes[0]": "FIELD_INVALID"}),
        ({"scopes": [1, 99]}, {"api_key.scopes[1]": "FIELD_INVALID"}),
        ({"scopes": [1] * 101}, {"api_key.scopes": "LIMIT_EXCEEDED"}),
        ({"tenant": "acme"}, {"api_key.tenant": "FIELD_INVALID"}),
        ({"tenant": "tenants/-"}, {"api_key.tenant": "FIELD_INVALID"}),
        ({"display_name": "x" * 257}, {"api_key.display_name": "LIMIT_EXCEEDED"}),
        ({"display_name": "\0"}, {"api_key.display_name": "FIELD_INVALID"}),
        ({"expire_time": Timestamp(seconds=1)}, {"api_key.expire_time": "FIELD_INVALID"}),
        ({"expire_time": Timestamp(nanos=-1)}, {"api_key.expire_time": "FIELD_INVALID"}),
        (
            {"scopes": [], "tenant": "x", "expire_time": Timestamp(seconds=1)},
            {
                "api_key.scopes": "FIELD_REQUIRED",
                "api_key.tenant": "FIELD_INVALID",
                "api_key.expire_time": "FIELD_INVALID",
            },
        ),
    ],
)
async def test_invalid_key_is_refused_with_all_violations(
    boss: Access, fields: dict[str, Any], violations: dict[str, str]
) -> None:
    answer = await refusal(boss.create(**fields))
    assert (answer.code, answer.violations) == (INVALID, violations)
    assert await boss.names() == ([""], "")


async def test_key_for_an_unknown_tenant_is_refused(boss: Access) -> None:
    answer = await refusal(boss.create(tenant="tenants/unknown"))
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND")


async def test_keys_are_listed_newest_first_in_pages(gateway: Keyed, boss: Access) -> None:
    for number in range(5):
        made = await boss.create(display_name=f"k{number}")
    await boss.revoke(made.api_key.name)
    assert await boss.names() == (["k4", "k3", "k2", "k1", "k0", ""], "")
    first, token = await boss.names(page_size=4)
    assert first == ["k4", "k3", "k2", "k1"]
    assert await boss.names(page_size=4, page_token=token) == (["k0", ""], "")
    # Of one moment, as a restore or a script may have made them.
    await gateway.control.rig.database.fetch("UPDATE api_keys SET create_time = now()")
    seen, token = await boss.names(page_size=2)
    while token:
        more, token = await boss.names(page_size=2, page_token=token)
        seen += more
    assert sorted(seen) == ["", "k0", "k1", "k2", "k3", "k4"]


@pytest.mark.parametrize("page_token", ["x", "AAAA"])
async def test_invalid_page_is_refused(boss: Access, page_token: str) -> None:
    answer = await refusal(boss.names(page_token=page_token))
    assert answer.violations == {"page_token": "PAGE_TOKEN_INVALID"}
    answer = await refusal(boss.names(page_size=-1))
    assert answer.violations == {"page_size": "FIELD_INVALID"}
    assert (await refusal(boss.names(filter="x"))).code is grpc.StatusCode.UNIMPLEMENTED


async def test_revoking_a_key_is_idempotent(boss: Access) -> None:
    name = (await boss.create()).api_key.name
    first = await boss.revoke(name)
    assert first.HasField("revoke_time")
    assert await boss.revoke(name) == first


@pytest.mark.parametrize(
    "name, code",
    [
        ("", INVALID),
        ("apiKeys/", INVALID),
        ("apiKeys/short", INVALID),
        ("keys/a1B2c3D4e5F6", INVALID),
        ("apiKeys/a1B2c3D4e5F6\0", INVALID),
        ("apiKeys/a1B2c3D4e5F6", grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_revoking_an_unknown_or_invalid_key_is_refused(
    boss: Access, name: str, code: grpc.StatusCode
) -> None:
    assert (await refusal(boss.revoke(name))).code is code


async def test_key_can_revoke_itself(gateway: Keyed) -> None:
    token = await gateway.token()
    access = Access(gateway, token)
    await access.revoke(f"apiKeys/{token.split('_')[1]}")
    assert (await refusal(access.names())).code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_caller_bound_to_a_tenant_creates_keys_of_that_tenant_only(gateway: Keyed) -> None:
    access = Access(gateway, await gateway.token(tenant="acme"))
    made = await access.create(tenant="tenants/acme", scopes=list(ApiKeyScope.values())[1:])
    assert made.api_key.tenant == "tenants/acme"
    answer = await refusal(access.create())
    assert (answer.code, answer.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "PERMISSION_DENIED",
    )
    answer = await refusal(access.create(tenant="tenants/unknown"))
    assert answer.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("scope", [scope for scope in Scope if scope is not Scope.ADMIN])
async def test_only_administrators_manage_keys(gateway: Keyed, scope: Scope) -> None:
    access = Access(gateway, await gateway.token(scope))
    for call in (access.create(), access.names(), access.revoke("apiKeys/a1B2c3D4e5F6")):
        answer = await refusal(call)
        assert (answer.code, answer.metadata) == (
            grpc.StatusCode.PERMISSION_DENIED,
            {"scope": "ADMIN"},
        )


async def test_a_key_never_outlives_the_credentials_that_create_it(gateway: Keyed) -> None:
    """Otherwise a key that expires in seconds could create one that never expires."""
    ends = Timestamp(seconds=4_000_000_000)
    access = Access(gateway, await gateway.token(expire_time=ends.ToDatetime(UTC)))
    assert (await access.create()).api_key.expire_time == ends
    assert (await access.create(expire_time=ends)).api_key.expire_time == ends
    sooner = Timestamp(seconds=ends.seconds - 1)
    child = await access.create(scopes=[API_KEY_SCOPE_ADMIN], expire_time=sooner)
    assert child.api_key.expire_time == sooner
    grandchild = await Access(gateway, child.token).create()
    assert grandchild.api_key.expire_time == sooner

    answer = await refusal(access.create(expire_time=Timestamp(seconds=ends.seconds, nanos=1_000)))
    assert (answer.code, answer.violations) == (INVALID, {"api_key.expire_time": "FIELD_INVALID"})
    assert "2096-10-02" in answer.message


async def test_a_caller_cannot_create_a_key_with_scopes_it_lacks(
    gateway: Keyed, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Today the method requires ADMIN, which has all scopes; the check holds if that changes."""
    name = "hookline.v1.AccessService/CreateApiKey"
    monkeypatch.setattr(
        "hookline_service.api.middleware.interceptors.METHODS",
        {name: replace(METHODS[name], access=AUTHENTICATED)},
    )
    access = AccessServicer(
        keys=gateway.keys,
        forget=gateway.source.forget,
        log=AuditLog(gateway.control.rig.database),
        pages=Pages(PAGE_KEY, Limits()),
        limits=Limits(),
    )
    source = HeaderSource(publisher=caller(Scope.PUBLISH))
    async with serving(database_url, identities=[source], access=access) as api:
        stub = AccessServiceStub(api.channel)
        for scopes, missing in (
            ([API_KEY_SCOPE_PUBLISH], None),
            ([API_KEY_SCOPE_PUBLISH, API_KEY_SCOPE_OPERATE], "OPERATE"),
            ([API_KEY_SCOPE_ADMIN, API_KEY_SCOPE_OPERATE], "ADMIN,OPERATE"),
        ):
            call = stub.CreateApiKey(
                CreateApiKeyRequest(api_key=ApiKey(scopes=scopes)),
                metadata=(("caller", "publisher"),),
            )
            if missing is None:
                await call
                continue
            answer = await refusal(call)
            assert (answer.code, answer.metadata) == (
                grpc.StatusCode.PERMISSION_DENIED,
                {"scope": missing},
            )
