"""The secrets of a subscription, encrypted with a data key of its tenant.

These are its signing secrets and the secrets of its target: header values, and a client certificate
with its key.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

from hookline_service.domain.subscription import HttpTarget, SignatureScheme
from hookline_service.store.data_keys import DataKey, TenantSecrets
from hookline_service.store.database import Database, OutcomeUnknownError
from hookline_service.store.secrets import SecretPlace
from hookline_service.store.statements import Statements
from hookline_service.store.subscription_rows import CERTIFICATE, HEADERS, stored_public_fields_of

SQL = Statements("subscriptions")


class LiveSecret(NamedTuple):
    """An active signing secret in plaintext; only its signatures leave the process."""

    scheme: SignatureScheme
    text: str
    """`whsec_…` or `whsk_…`."""
    expire_time: datetime | None
    """The database time at which it expires; None for the current secret."""

    def __repr__(self) -> str:
        return f"LiveSecret({self.scheme}, expire_time={self.expire_time})"


class CertificatePem(NamedTuple):
    """The chain and the key of a client certificate in plaintext; both empty: no certificate."""

    chain: str
    private_key: str

    def __repr__(self) -> str:
        return "CertificatePem()"


NO_CERTIFICATE = CertificatePem("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSecrets:
    """The secrets of a target in plaintext; in a change, None means unchanged."""

    headers: Mapping[str, str] | None = field(default=None, repr=False)
    certificate: CertificatePem | None = None

    def __bool__(self) -> bool:
        return self.headers is not None or self.certificate is not None


UNCHANGED = TargetSecrets()


def open_target_secrets(row: asyncpg.Record, secrets: TenantSecrets) -> TargetSecrets:
    """Decrypt the target secrets in a row of the statement `read`; raise `SealedSecretError`."""
    opened: dict[str, list[str]] = {}
    columns = (row["secret_kinds"], row["secret_versions"], row["secret_values"])
    for kind, version, sealed in zip(*columns, strict=True):
        place = _place_of(row["tenant_uid"], row["subscription_uid"], version, kind)
        opened[kind] = json.loads(secrets.open(sealed, place, data_keys_of(row)))
    headers = opened.get(HEADERS)
    certificate = opened.get(CERTIFICATE)
    return TargetSecrets(
        headers=None if headers is None else dict(zip(headers[::2], headers[1::2], strict=True)),
        certificate=None if certificate is None else CertificatePem(*certificate),
    )


def _place_of(tenant_uid: UUID, subscription_uid: UUID, version: int, kind: str) -> SecretPlace:
    return SecretPlace(tenant_uid, subscription_uid, version, b"hookline target " + kind.encode())


class Sealer:
    """Encrypts the secrets of one subscription."""

    def __init__(
        self, secrets: TenantSecrets, data_key: DataKey, tenant_uid: UUID, uid: UUID
    ) -> None:
        self._secrets = secrets
        self._data_key = data_key
        self._tenant_uid = tenant_uid
        self._uid = uid

    def signing_secret(self, text: str, version: int) -> bytes:
        """Encrypt a signing secret with the given version."""
        place = SecretPlace(self._tenant_uid, self._uid, version)
        return self._secrets.seal(text.encode(), place, self._data_key)

    def target_secrets(
        self, given: TargetSecrets, target: HttpTarget, version: int
    ) -> list[dict[str, object]]:
        """Return the changes of target secrets for the statements `create` and `update`.

        `version` is the version of the subscription's row that the statement writes.
        """
        parts: list[tuple[str, list[str]]] = []
        if given.headers is not None:
            parts.append((HEADERS, [text for item in given.headers.items() for text in item]))
        if given.certificate is not None:
            is_none = given.certificate == NO_CERTIFICATE
            parts.append((CERTIFICATE, [] if is_none else list(given.certificate)))
        changes: list[dict[str, object]] = []
        for kind, texts in parts:
            change: dict[str, object] = {"kind": kind}
            if texts:
                place = _place_of(self._tenant_uid, self._uid, version, kind)
                sealed = self._secrets.seal(json.dumps(texts).encode(), place, self._data_key)
                change["sealed"] = base64.b64encode(sealed).decode()
                change["shown"] = stored_public_fields_of(target, kind)
            changes.append(change)
        return changes


def open_signing_secrets(row: asyncpg.Record, secrets: TenantSecrets) -> tuple[LiveSecret, ...]:
    """Decrypt the signing secrets in a row of the statement `read`; raise `SealedSecretError`."""
    columns = (row["key_versions"], row["key_schemes"], row["key_secrets"], row["key_expire_times"])
    data_keys = data_keys_of(row)
    return tuple(
        LiveSecret(
            SignatureScheme(scheme),
            secrets.open(
                sealed, SecretPlace(row["tenant_uid"], row["subscription_uid"], version), data_keys
            ).decode(),
            expire_time,
        )
        for version, scheme, sealed, expire_time in zip(*columns, strict=True)
    )


def data_keys_of(row: asyncpg.Record) -> tuple[DataKey, ...]:
    """Return the data keys in a row of `read` or `find_tenant`, newest first."""
    return tuple(map(DataKey, row["data_key_ids"], row["data_keys"]))


async def sealer_for(
    database: Database, secrets: TenantSecrets, row: asyncpg.Record, uid: UUID
) -> Sealer:
    """Return a `Sealer` with a usable data key of the row, or with a new one."""
    tenant_uid: UUID = row["tenant_uid"]
    data_key = secrets.usable(tenant_uid, data_keys_of(row))
    if data_key is None:
        data_key = await add_data_key(database, secrets, tenant_uid)
    return Sealer(secrets, data_key, tenant_uid, uid)


async def add_data_key(database: Database, secrets: TenantSecrets, tenant_uid: UUID) -> DataKey:
    """Create and store a data key of a tenant."""
    data_key = secrets.make_data_key(tenant_uid)
    arguments = (tenant_uid, data_key.key_id, data_key.sealed, secrets.box.key_ids[0])
    try:
        await database.fetch(SQL.add_data_key, *arguments)
    except OutcomeUnknownError:
        # It is unknown whether the key is stored; a tenant can have two.
        data_key = secrets.make_data_key(tenant_uid)
        arguments = (tenant_uid, data_key.key_id, data_key.sealed, secrets.box.key_ids[0])
        await database.fetch(SQL.add_data_key, *arguments)
    return data_key
