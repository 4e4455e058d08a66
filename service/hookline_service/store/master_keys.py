"""The registry of master keys, which is checked at start, and the rotation of master keys.

Theory of operation. A node registers a master key by its id, a hash of the key, before it encrypts
with it. So a starting node finds a missing key without decrypting anything. A rotation encrypts
data keys and deployment keys again with the first master key, in batches. Each batch changes only
rows that are as they were read, and skips finished ones, so a rotation can be interrupted, repeated
and run concurrently, and nodes that have all keys are not affected. Signing secrets of the old
format, encrypted with a master key directly, are encrypted with a data key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg

from hookline_service.store.audit import SQL as AUDIT
from hookline_service.store.audit import draft
from hookline_service.store.data_keys import DataKey, DataKeyPlace, TenantSecrets
from hookline_service.store.database import ContentionError, Database
from hookline_service.store.deployment_keys import DeploymentKeyPlace
from hookline_service.store.secrets import (
    MasterKeyError,
    SealedSecretError,
    SecretBox,
    SecretPlace,
    names_of,
)
from hookline_service.store.statements import Statements
from hookline_service.store.subscription_secrets import add_data_key, data_keys_of

SQL = Statements("master_keys")

_BATCH = 500
_TRIES = 5
_FIRST_UID = UUID(int=0)


async def check_master_keys(database: Database, box: SecretBox) -> None:
    """Register the first key; raise `MasterKeyError` if a registered key is missing."""
    rows = await database.fetch(SQL.registered)
    if box.key_ids[0] not in {row["key_id"] for row in rows}:
        async with database.transaction() as connection:
            await connection.execute(SQL.lock)
            await connection.execute(SQL.register, box.key_ids[0], list(box.key_ids))
        rows = await database.fetch(SQL.registered)
    missing = [row["key_id"] for row in rows if row["key_id"] not in box.key_ids]
    if missing:
        raise MasterKeyError(
            f"stored secrets are sealed with the master key {names_of(missing)}, which"
            f" HOOKLINE_MASTER_KEY lacks (it has {names_of(box.key_ids)}): add it after the first"
            " one, separated by a comma. If it is lost, see `hookline keys forget-master --help`"
        )


async def forget_master_key(database: Database, key_id: bytes) -> bool:
    """Remove a key from the registry, so that nodes start without it; return whether it existed.

    Secrets that were encrypted with it stay stored.
    """
    entry = draft(f"masterKeys/{key_id.hex()}", action="ForgetMasterKey")
    return bool(await database.fetch(SQL.forget, key_id, entry))


class KeyUse(NamedTuple):
    """The number of rows that a master key encrypts."""

    key_id: bytes
    data_keys: int
    secrets: int
    """Signing secrets of the old format, without a data key."""
    deployment_keys: int = 0


class RotationReport(NamedTuple):
    """The result of a rotation."""

    data_keys: int
    """The number encrypted again."""
    secrets: int
    """The number encrypted with a data key."""
    unreadable: Sequence[str]
    """Why the remaining ones could not be decrypted; each reason once."""
    used: Sequence[KeyUse]
    """The master keys in use."""
    deployment_keys: int = 0
    """The number encrypted again."""


class KeyRotation:
    """Encrypts again, with the first master key, what other master keys encrypt."""

    def __init__(
        self, database: Database, secrets: TenantSecrets, *, batch_max: int = _BATCH
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._box = secrets.box
        self._batch_max = batch_max
        self._reasons: dict[str, None] = {}

    async def left(self) -> int:
        """Return the number of rows to encrypt again."""
        ((count,),) = await self._database.fetch(SQL.count, self._box.key_ids[0])
        return int(count)

    async def run(self, report_progress: Callable[[int], None]) -> RotationReport:
        """Rotate; calls `report_progress` after each batch with the number of finished rows."""
        await check_master_keys(self._database, self._box)
        self._reasons.clear()
        if left := await self.left():
            # Audited before it begins, because it can be interrupted after any batch.
            await self._database.fetch(AUDIT.add, [None], [_draft(self._box.key_ids[0], left)])
        secrets = await self._seal_secrets(report_progress)
        data_keys = await self._seal_data_keys(lambda done: report_progress(secrets + done))
        deployment_keys = await self._seal_deployment_keys()
        used = [KeyUse(*row.values()) for row in await self._database.fetch(SQL.used)]
        unused = set(self._box.key_ids) - {use.key_id for use in used}
        async with self._database.transaction() as connection:
            await connection.execute(SQL.lock)
            await connection.execute(SQL.retire, list(unused), self._box.key_ids[0])
        return RotationReport(data_keys, secrets, list(self._reasons), used, deployment_keys)

    async def _seal_deployment_keys(self) -> int:
        changes = []
        for row in await self._database.fetch(SQL.deployment_keys, self._box.key_ids[0]):
            place = DeploymentKeyPlace(row["purpose"])
            try:
                key = self._box.open(row["sealed"], place)
            except SealedSecretError as error:
                self._reasons[str(error)] = None
                continue
            changes.append((place.purpose, row["sealed"], self._box.seal(key, place)))
        return await self._put(SQL.put_deployment_keys, changes)

    async def _seal_data_keys(self, report_progress: Callable[[int], None]) -> int:
        done, after = 0, (_FIRST_UID, b"")
        while True:
            rows = await self._database.fetch(
                SQL.data_keys, self._box.key_ids[0], *after, self._batch_max
            )
            changes = []
            for row in rows:
                place = DataKeyPlace(row["tenant_uid"], row["key_id"])
                try:
                    key = self._box.open(row["sealed_key"], place)
                except SealedSecretError as error:
                    self._reasons[str(error)] = None
                    continue
                changes.append((*place, row["sealed_key"], self._box.seal(key, place)))
            done += await self._put(SQL.put_data_keys, changes)
            report_progress(done)
            if len(rows) < self._batch_max:
                return done
            after = (rows[-1]["tenant_uid"], rows[-1]["key_id"])

    async def _seal_secrets(self, report_progress: Callable[[int], None]) -> int:
        done, after = 0, (_FIRST_UID, 0)
        while True:
            rows = await self._database.fetch(SQL.signing_secrets, *after, self._batch_max)
            new_keys: dict[UUID, DataKey] = {}
            changes = []
            for row in rows:
                place = SecretPlace(row["tenant_uid"], row["subscription_uid"], row["version"])
                sealed: bytes = row["sealed_secret"]
                try:
                    secret = self._box.open(sealed, place)
                except SealedSecretError as error:
                    self._reasons[str(error)] = None
                    continue
                data_key = await self._data_key_of(row, new_keys)
                resealed = self._secrets.seal(secret, place, data_key)
                changes.append((row["subscription_uid"], row["version"], sealed, resealed))
            done += await self._put(SQL.put_signing_secrets, changes)
            report_progress(done)
            if len(rows) < self._batch_max:
                return done
            after = (rows[-1]["subscription_uid"], rows[-1]["version"])

    async def _data_key_of(self, row: asyncpg.Record, new_keys: dict[UUID, DataKey]) -> DataKey:
        """Return a data key of a row's tenant; `new_keys` are the new ones of this batch."""
        tenant_uid: UUID = row["tenant_uid"]
        data_key = new_keys.get(tenant_uid) or self._secrets.usable(tenant_uid, data_keys_of(row))
        if data_key is None:
            data_key = await add_data_key(self._database, self._secrets, tenant_uid)
            new_keys[tenant_uid] = data_key
        return data_key

    async def _put(self, statement: str, changes: Sequence[tuple[object, ...]]) -> int:
        """Write a batch, which is safe to repeat; return the number of changed rows."""
        if not changes:
            return 0
        for _ in range(_TRIES - 1):
            try:
                return len(
                    await self._database.fetch(statement, *map(list, zip(*changes, strict=True)))
                )
            except ContentionError:
                continue
        return len(await self._database.fetch(statement, *map(list, zip(*changes, strict=True))))


def _draft(key_id: bytes, count: int) -> dict[str, str]:
    return draft(
        f"masterKeys/{key_id.hex()}", after={"seals_anew": count}, action="RotateMasterKey"
    )
