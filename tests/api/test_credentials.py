"""Credentials: valid API keys are accepted, all others get the same answer.

The row `credentials` of the bad inputs, and the uniform answers that disclose nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta

import grpc
import pytest

from hookline.v1.access_service_pb2 import RevokeApiKeyRequest
from hookline.v1.access_service_pb2_grpc import AccessServiceStub
from hookline.v1.delivery_service_pb2 import ListDeliveriesRequest
from hookline.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from hookline.v1.tenant_service_pb2 import GetTenantRequest
from hookline.v1.tenant_service_pb2_grpc import TenantServiceStub
from hookline_service.api.middleware.api_key_source import BELIEVED_S, REFRESH_S
from hookline_service.api.middleware.authentication import Metadata
from hookline_service.domain.api_key import key_id_in, make_token
from hookline_service.domain.caller import Scope
from hookline_service.domain.errors import ResourceExhaustedError, UnauthenticatedError
from hookline_service.pipeline.clock import SystemClock
from hookline_service.store.api_keys import FoundKey
from tests.api.keyed import Keyed, bearer, keyed
from tests.api.refusals import Refused, refusal
from tests.waiting import until

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
async def gateway(database_url: str) -> AsyncIterator[Keyed]:
    async with keyed(database_url) as gateway:
        yield gateway


def get(gateway: Keyed, metadata: Metadata, name: str = "tenants/acme") -> Awaitable[object]:
    return TenantServiceStub(gateway.channel).GetTenant(
        GetTenantRequest(name=name),
        metadata=metadata,
    )


def key_id(token: str) -> str:
    return key_id_in(token) or ""


async def revoked(gateway: Keyed) -> Metadata:
    token = await gateway.token()
    await gateway.keys.revoke(key_id(token), None)
    return bearer(token)


async def expired(gateway: Keyed) -> Metadata:
    now = await gateway.keys.now()
    return bearer(await gateway.token(expire_time=now - timedelta(microseconds=1)))


async def wrong_secret(gateway: Keyed) -> Metadata:
    token = await gateway.token()
    return bearer(token[:-1] + ("0" if token[-1] != "0" else "1"))


async def others_secret(gateway: Keyed) -> Metadata:
    one, other = await gateway.token(), await gateway.token()
    return bearer(f"hk_{key_id(one)}_{other.rpartition('_')[2]}")


def invented(number: int = 61) -> str:
    """A token that was never issued."""
    return make_token("a1B2c3D4e5F6", lambda below: number % below)


async def unknown(gateway: Keyed) -> Metadata:
    del gateway
    return bearer(invented())


async def of_a_deleted_tenant(gateway: Keyed) -> Metadata:
    token = await gateway.token(tenant="acme")
    await gateway.control.rig.database.fetch("UPDATE tenants SET deleted_at = now()")
    return bearer(token)


async def of_a_tenant_made_anew(gateway: Keyed) -> Metadata:
    shown = await of_a_deleted_tenant(gateway)
    await gateway.control.rig.tenant("acme")
    return shown


async def twice(gateway: Keyed) -> Metadata:
    return bearer(await gateway.token()) * 2


async def under_another_word(gateway: Keyed) -> Metadata:
    return (("authorization", f"Basic {await gateway.token()}"),)


async def without_a_word(gateway: Keyed) -> Metadata:
    return (("authorization", await gateway.token()),)


async def under_another_name(gateway: Keyed) -> Metadata:
    return (("x-api-key", await gateway.token()),)


async def in_another_casing(gateway: Keyed) -> Metadata:
    return bearer((await gateway.token()).swapcase())


async def with_a_digest(gateway: Keyed) -> Metadata:
    """Return a token made of a stored digest, which a copy of the database contains."""
    token = await gateway.token()
    [row] = await gateway.control.rig.database.fetch("SELECT digest FROM api_keys")
    return bearer(f"hk_{key_id(token)}_{row['digest'].hex()[:43]}")


BAD: list[Callable[[Keyed], Awaitable[Metadata]]] = [
    revoked,
    expired,
    wrong_secret,
    others_secret,
    unknown,
    of_a_deleted_tenant,
    of_a_tenant_made_anew,
    twice,
    under_another_word,
    without_a_word,
    under_another_name,
    in_another_casing,
    with_a_digest,
]
GARBAGE: list[Metadata] = [
    (),
    bearer(""),
    bearer("hk_"),
    bearer("hk__"),
    bearer("hk_" + "x" * 4_000),
    bearer("hk_' OR true --"),
    bearer("eyJhbGciOiJub25lIn0.e30."),
    (("authorization", ""),),
    (("authorization-bin", b"\x00\xff"),),
]


async def refused(gateway: Keyed, metadata: Metadata) -> Refused:
    return await refusal(get(gateway, metadata))


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
async def test_all_invalid_credentials_get_the_same_answer(
    gateway: Keyed, make: Callable[[Keyed], Awaitable[Metadata]]
) -> None:
    metadata = await make(gateway)
    missing = await refused(gateway, ())
    assert (missing.code, missing.reason) == (UNAUTHENTICATED, "UNAUTHENTICATED")
    assert (missing.metadata, missing.violations) == ({}, {})
    for _ in range(2):  # looked up, and remembered
        assert await refused(gateway, metadata) == missing


async def test_malformed_credentials_get_the_same_answer(gateway: Keyed) -> None:
    missing = await refused(gateway, ())
    for metadata in GARBAGE:
        assert await refused(gateway, metadata) == missing


async def test_a_valid_key_is_authenticated(gateway: Keyed) -> None:
    now = await gateway.keys.now()
    for token in (
        await gateway.token(),
        await gateway.token(tenant="acme"),
        await gateway.token(Scope.MANAGE),
        await gateway.token(expire_time=now + timedelta(hours=1)),
    ):
        await get(gateway, bearer(token))
        await get(gateway, (("authorization", f"bearer {token}"),))


async def test_a_publishers_key_reads_no_deliveries(gateway: Keyed) -> None:
    answer = await refusal(
        DeliveryServiceStub(gateway.channel).ListDeliveries(
            ListDeliveriesRequest(tenant="tenants/acme"),
            metadata=bearer(await gateway.token(Scope.PUBLISH)),
        )
    )
    assert (answer.code, answer.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "PERMISSION_DENIED",
    )
    assert answer.metadata == {"scope": "OPERATE"}
    assert "OPERATE" in answer.message


async def test_another_tenant_is_not_found(gateway: Keyed) -> None:
    await gateway.control.rig.tenant("beta")
    metadata = bearer(await gateway.token(tenant="acme"))
    answer = await refusal(get(gateway, metadata, "tenants/beta"))
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND")


async def test_a_revocation_takes_effect_on_this_node_at_once(gateway: Keyed) -> None:
    token, admin = await gateway.token(), await gateway.token(Scope.ADMIN)
    await get(gateway, bearer(token))
    await AccessServiceStub(gateway.channel).RevokeApiKey(
        RevokeApiKeyRequest(name=f"apiKeys/{key_id(token)}"), metadata=bearer(admin)
    )
    assert (await refused(gateway, bearer(token))).code is UNAUTHENTICATED


async def test_a_revocation_on_another_node_takes_effect_while_the_key_is_in_use(
    gateway: Keyed,
) -> None:
    token = await gateway.token()
    await get(gateway, bearer(token))
    await gateway.keys.revoke(key_id(token), None)

    async def is_shut_out() -> bool:
        try:
            await get(gateway, bearer(token))
        except grpc.aio.AioRpcError as error:
            return error.code() is UNAUTHENTICATED
        return False

    await until(is_shut_out, "it is read again", within_s=5)


async def test_a_cached_key_expires_even_if_it_cannot_be_read_again(
    gateway: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await gateway.token()
    await get(gateway, bearer(token))
    reads = asyncio.Event()

    async def never(_ids: object) -> dict[str, FoundKey]:
        await reads.wait()
        return {}

    monkeypatch.setattr(gateway.source._key_lookup, "find", never)  # noqa: SLF001
    await get(gateway, bearer(token))
    gateway.clock.ahead_s += BELIEVED_S
    waiting = asyncio.ensure_future(refused(gateway, bearer(token)))
    await until(lambda: bool(gateway.source._lookups), "it is asked for")  # noqa: SLF001
    reads.set()
    assert (await waiting).code is UNAUTHENTICATED
    assert BELIEVED_S + REFRESH_S < 5


async def test_a_key_expires_by_the_clock_of_the_database(gateway: Keyed) -> None:
    token = await gateway.token(expire_time=await gateway.keys.now() + timedelta(hours=1))
    await get(gateway, bearer(token))
    gateway.clock.ahead_s += 3_600
    await get(gateway, bearer(token))  # read again: the database's clock was not turned
    [known] = gateway.source._valid.values()  # noqa: SLF001
    known.read_s = known.expires_s = gateway.clock.boottime_s()
    assert (await refused(gateway, bearer(token))).code is UNAUTHENTICATED


async def test_use_is_recorded_to_the_minute(gateway: Keyed) -> None:
    token, other = await gateway.token(), await gateway.token()

    async def last_use(token: str) -> datetime | None:
        for key in await gateway.keys.list_page(None, limit=10):
            if key.key_id == key_id(token):
                return key.last_use_time
        return None

    async def is_noted() -> bool:
        return await last_use(token) is not None

    await get(gateway, bearer(token))
    await until(is_noted, "its use is noted")
    noted = await last_use(token)
    assert noted is not None
    assert (noted.second, noted.microsecond) == (0, 0)
    assert await gateway.keys.now() - noted < timedelta(minutes=2)
    assert await last_use(other) is None


async def test_a_key_in_use_is_not_looked_up_while_a_call_waits(
    gateway: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, waited = await gateway.token(), 0
    ask = gateway.source._find  # noqa: SLF001

    async def counted(fingerprint: bytes, token: str) -> object:
        nonlocal waited
        waited += 1
        return await ask(fingerprint, token)

    monkeypatch.setattr(gateway.source, "_find", counted)
    await get(gateway, bearer(token))
    assert waited == 1
    for _ in range(2):
        [known] = gateway.source._valid.values()  # noqa: SLF001
        read_s = known.read_s
        await until(lambda: known.read_s > read_s, "it is read again")  # noqa: B023
        gateway.clock.ahead_s = read_s + BELIEVED_S - SystemClock().boottime_s() + 0.1
        await get(gateway, bearer(token))
    assert waited == 1
    for _ in range(2):  # one that is no good is remembered too
        with pytest.raises(UnauthenticatedError):
            await gateway.source.authenticate(await unknown(gateway), dict, "")
    assert waited == 2


async def test_concurrent_calls_share_a_lookup(
    gateway: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, found = await gateway.token(), 0
    find, is_open = gateway.source._key_lookup.find, asyncio.Event()  # noqa: SLF001

    async def counted(ids: set[str]) -> dict[str, FoundKey]:
        nonlocal found
        found += 1
        await is_open.wait()
        return await find(ids)

    monkeypatch.setattr(gateway.source._key_lookup, "find", counted)  # noqa: SLF001
    calls = [asyncio.ensure_future(get(gateway, bearer(token))) for _ in range(20)]
    await until(lambda: gateway.source._waiting == 20, "all wait")  # noqa: SLF001
    assert found == 1
    is_open.set()
    await asyncio.gather(*calls)


async def test_the_cache_is_bounded_and_invalid_keys_evict_no_valid_ones(
    database_url: str,
) -> None:
    async with keyed(database_url, max_cached=5) as gateway:
        tokens = [await gateway.token() for _ in range(4)]
        for token in tokens:
            await get(gateway, bearer(token))
        for number in range(20):
            with pytest.raises(UnauthenticatedError):
                await gateway.source.authenticate(bearer(invented(number)), dict, "")
        assert len(gateway.source._valid) == 4  # noqa: SLF001
        assert len(gateway.source._refused) == 5  # noqa: SLF001
        for _ in range(4):
            await get(gateway, bearer(await gateway.token()))
        assert len(gateway.source._valid) == 5  # noqa: SLF001


async def test_lookups_beyond_the_limit_are_refused_with_a_retry_delay(
    database_url: str,
) -> None:
    async with keyed(database_url, max_cached=3) as gateway:
        asking = [
            asyncio.ensure_future(
                gateway.source.authenticate(bearer(await gateway.token()), dict, "")
            )
            for _ in range(3)
        ]
        late = bearer(await gateway.token())
        await asyncio.gather(*asking)
        asking = [
            asyncio.ensure_future(gateway.source.authenticate(bearer(invented(n)), dict, ""))
            for n in range(3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError) as full:
            await gateway.source.authenticate(late, dict, "")
        assert full.value.metadata == {"limit": "HOOKLINE_MAX_CACHED_KEYS", "maximum": "3"}
        await asyncio.gather(*asking, return_exceptions=True)


async def test_without_the_database_a_key_is_unavailable_and_not_unauthenticated(
    gateway: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await gateway.token()
    database = gateway.source._key_lookup._session._database  # noqa: SLF001
    monkeypatch.setattr(database, "_url", "postgresql://127.0.0.1:1/none")
    answer = await refused(gateway, bearer(token))
    assert (answer.code, answer.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "DATABASE_UNAVAILABLE",
    )
    monkeypatch.undo()
    await get(gateway, bearer(token))


async def test_no_token_stays_in_memory(gateway: Keyed) -> None:
    token = await gateway.token()
    await get(gateway, bearer(token))
    held = repr([vars(gateway.source), [repr(known) for known in gateway.source._valid.values()]])  # noqa: SLF001
    assert token not in held
    assert token.rpartition("_")[2] not in held
