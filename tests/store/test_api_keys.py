"""API keys and deployment keys in the store, and the look-ups for authentication."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from hookline_service.domain.api_key import digest_of
from hookline_service.domain.caller import Scope
from hookline_service.domain.errors import NotFoundError
from hookline_service.store.api_keys import ApiKeyLookup, ApiKeys, NewApiKey
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.database import Database
from hookline_service.store.deployment_keys import (
    API_KEYS,
    DeploymentKeyPlace,
    load_or_create_deployment_key,
)
from hookline_service.store.master_keys import KeyRotation, check_master_keys, forget_master_key
from hookline_service.store.secrets import SealedSecretError, SecretBox, key_id_of
from hookline_service.store.tenants import Tenants
from tests.store.audit_log import entries_of, shown

KEY = b"d" * 32
OLD, NEW = b"o" * 32, b"n" * 32
DRAFT = NewApiKey(
    display_name="x", tenant_id=None, scopes=frozenset({Scope.PUBLISH}), expire_time=None
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def keys(database: Database) -> ApiKeys:
    return ApiKeys(database, KEY)


@pytest.fixture
async def lookup(database: Database) -> AsyncIterator[ApiKeyLookup]:
    lookup = ApiKeyLookup(database.session("access"))
    yield lookup
    await lookup.close()


async def test_stored_key_is_found_with_all_its_fields(
    database: Database, keys: ApiKeys, lookup: ApiKeyLookup
) -> None:
    await Tenants(database).create("acme", "", {})
    now = await keys.now()
    key, token = await keys.create(
        NewApiKey(
            display_name="",
            tenant_id="acme",
            scopes=frozenset({Scope.PUBLISH, Scope.OPERATE}),
            expire_time=now + timedelta(seconds=100),
        )
    )
    other, _ = await keys.create(DRAFT)
    found = await lookup.find([key.key_id, other.key_id, "unknown"])
    assert set(found) == {key.key_id, other.key_id}
    one = found[key.key_id]
    assert one.digest == digest_of(token, KEY)
    assert one.scopes == {Scope.PUBLISH, Scope.OPERATE}
    assert (one.tenant_id, one.is_live) == ("acme", True)
    assert 90 < one.expires_in_s <= 100
    assert (found[other.key_id].tenant_id, found[other.key_id].expires_in_s) == (None, math.inf)


async def test_a_revoked_key_and_one_of_a_deleted_tenant_are_not_live(
    database: Database, keys: ApiKeys, lookup: ApiKeyLookup
) -> None:
    tenants = Tenants(database)
    await tenants.create("acme", "", {})
    revoked, _ = await keys.create(DRAFT)
    orphan, _ = await keys.create(
        NewApiKey(display_name="", tenant_id="acme", scopes=DRAFT.scopes, expire_time=None)
    )
    await keys.revoke(revoked.key_id, None)
    await tenants.delete("acme")
    await tenants.create("acme", "", {})
    found = await lookup.find([revoked.key_id, orphan.key_id])
    assert [key.is_live for key in found.values()] == [False, False]
    assert await keys.list_page("acme", limit=9) == []
    assert len(await keys.list_page(None, limit=9)) == 2
    with pytest.raises(NotFoundError):
        await keys.revoke(orphan.key_id, "acme")


async def test_audit_entries_of_a_key_contain_no_token(database: Database, keys: ApiKeys) -> None:
    await Tenants(database).create("acme", "", {})
    key, token = await keys.create(
        NewApiKey(display_name="x", tenant_id="acme", scopes=DRAFT.scopes, expire_time=None)
    )
    for _ in range(2):
        await keys.revoke(key.key_id, "acme")
    created, revoked = (await entries_of(database))[1:]
    assert {entry.resource for entry in (created, revoked)} == {f"apiKeys/{key.key_id}"}
    assert {entry.tenant for entry in (created, revoked)} == {"tenants/acme"}
    assert created.tenant_uid == revoked.tenant_uid is not None
    assert created.after_json == revoked.before_json
    assert shown(revoked.after_json) == shown(created.after_json) | {"is_revoked": True}
    secret = token.rpartition("_")[2]
    assert secret not in created.after_json + revoked.after_json


async def test_last_use_is_written_once_a_minute_by_all_nodes_together(
    database: Database, keys: ApiKeys, lookup: ApiKeyLookup
) -> None:
    key, _ = await keys.create(DRAFT)
    other = ApiKeyLookup(database.session("other"))
    await asyncio.gather(*(one.touch([key.key_id]) for one in (lookup, other)))
    await lookup.touch([key.key_id, "unknown"])
    [(used, version)] = await database.fetch("SELECT last_use_time, xmin::text FROM api_keys")
    assert (used.second, used.microsecond) == (0, 0)
    await database.fetch("UPDATE api_keys SET last_use_time = last_use_time - interval '1 minute'")
    await lookup.touch([key.key_id])
    [(again, later)] = await database.fetch("SELECT last_use_time, xmin::text FROM api_keys")
    assert again >= used
    assert later != version
    await other.close()


async def test_concurrent_nodes_create_one_deployment_key_per_purpose(database: Database) -> None:
    box = SecretBox([OLD])
    keys = await asyncio.gather(
        *(load_or_create_deployment_key(database, box, API_KEYS) for _ in range(5))
    )
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
    assert await load_or_create_deployment_key(database, box, "another") != keys[0]


async def test_master_key_rotation_does_not_change_a_deployment_key(database: Database) -> None:
    key = await load_or_create_deployment_key(database, SecretBox([OLD]), API_KEYS)
    both = SecretBox([NEW, OLD])
    assert await load_or_create_deployment_key(database, both, API_KEYS) == key
    sealed = both.seal(key, DeploymentKeyPlace(API_KEYS))
    await database.fetch("UPDATE deployment_keys SET sealed = $1", sealed)
    assert await load_or_create_deployment_key(database, SecretBox([NEW]), API_KEYS) == key


async def test_deployment_key_is_decrypted_only_with_its_master_key_and_purpose(
    database: Database,
) -> None:
    await load_or_create_deployment_key(database, SecretBox([OLD]), API_KEYS)
    with pytest.raises(SealedSecretError, match="HOOKLINE_MASTER_KEY lacks"):
        await load_or_create_deployment_key(database, SecretBox([NEW]), API_KEYS)
    await database.fetch("UPDATE deployment_keys SET purpose = 'another'")
    with pytest.raises(SealedSecretError):
        await load_or_create_deployment_key(database, SecretBox([OLD]), "another")
    assert len(await database.fetch("SELECT FROM deployment_keys")) == 1


async def test_rotation_reencrypts_deployment_keys_and_forgetting_deletes_them(
    database: Database,
) -> None:
    key = await load_or_create_deployment_key(database, SecretBox([OLD]), API_KEYS)
    await check_master_keys(database, SecretBox([OLD]))
    rotation = KeyRotation(database, TenantSecrets(SecretBox([NEW, OLD])))
    assert await rotation.left() == 1
    report = await rotation.run(lambda _done: None)
    assert (report.deployment_keys, report.unreadable) == (1, [])
    assert [(use.key_id, use.deployment_keys) for use in report.used] == [(key_id_of(NEW), 1)]
    assert await load_or_create_deployment_key(database, SecretBox([NEW]), API_KEYS) == key
    assert await forget_master_key(database, key_id_of(NEW))
    assert await load_or_create_deployment_key(database, SecretBox([OLD]), API_KEYS) != key


async def test_master_key_that_encrypts_a_deployment_key_stays_registered(
    database: Database,
) -> None:
    """Otherwise a node without the master key would start, and fail when it needs the key."""
    await check_master_keys(database, SecretBox([OLD]))
    await load_or_create_deployment_key(database, SecretBox([OLD]), API_KEYS)
    await database.fetch("UPDATE deployment_keys SET sealed = set_byte(sealed, 40, 0)")
    rotation = KeyRotation(database, TenantSecrets(SecretBox([NEW, OLD])))
    report = await rotation.run(lambda _done: None)
    assert len(report.unreadable) == 1
    rows = await database.fetch("SELECT key_id FROM master_keys")
    assert {row["key_id"] for row in rows} == {key_id_of(OLD), key_id_of(NEW)}
