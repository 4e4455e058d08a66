"""The secrets of a subscription's row: opened with its tenant's data keys, and sealed with one.

Must not know what signs, or how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from service.domain.subscription import SignatureScheme
from service.store.data_keys import DataKey
from service.store.database import OutcomeUnknownError
from service.store.secrets import SecretPlace
from service.store.statements import Statements

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    import asyncpg

    from service.store.data_keys import TenantSecrets
    from service.store.database import Database

SQL = Statements("subscriptions")


class LiveSecret(NamedTuple):
    """A secret that signs now, in clear: only its signatures leave the process."""

    scheme: SignatureScheme
    text: str
    """`whsec_…` or `whsk_…`."""
    expire_time: datetime | None
    """Database time from which it signs no more; None: the current one."""

    def __repr__(self) -> str:
        return f"LiveSecret({self.scheme}, expire_time={self.expire_time})"


def open_signing_secrets(row: asyncpg.Record, secrets: TenantSecrets) -> tuple[LiveSecret, ...]:
    """The live secrets in a row of the statement `read`; raises `SealedSecretError`."""
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
    """The data keys in a row of `read` or `find_tenant`, newest first."""
    return tuple(map(DataKey, row["data_key_ids"], row["data_keys"]))


async def data_key_for(
    database: Database, secrets: TenantSecrets, tenant_uid: UUID, row: asyncpg.Record
) -> DataKey:
    """What to seal a tenant's secrets with: one of the data keys in a row, or a new one."""
    data_key = secrets.usable(tenant_uid, data_keys_of(row))
    return data_key or await add_data_key(database, secrets, tenant_uid)


async def add_data_key(database: Database, secrets: TenantSecrets, tenant_uid: UUID) -> DataKey:
    """A new data key of a tenant, stored."""
    data_key = secrets.make_data_key(tenant_uid)
    arguments = (tenant_uid, data_key.key_id, data_key.sealed, secrets.box.key_ids[0])
    try:
        await database.fetch(SQL.add_data_key, *arguments)
    except OutcomeUnknownError:
        # Whether that one is there, nobody knows; a tenant may have two.
        data_key = secrets.make_data_key(tenant_uid)
        arguments = (tenant_uid, data_key.key_id, data_key.sealed, secrets.box.key_ids[0])
        await database.fetch(SQL.add_data_key, *arguments)
    return data_key
