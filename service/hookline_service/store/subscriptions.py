"""Subscriptions: create, read, change, rotate signing secrets, delete.

Theory of operation. Changes use optimistic concurrency: `change` reads a version, calls `decide`,
and writes only over that version; after a concurrent change it repeats, unless the caller gave an
etag. Each write is one statement that also gives the subscription the tenant's next epoch, writes
to the change log, so that the next publish on any node applies the change, and adds an audit draft.

The API has validated the fields before.
"""

from __future__ import annotations

import math
import secrets as randomness
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple, NoReturn
from uuid import UUID

import asyncpg

from hookline_service.domain.delivery import DeliveryState, Trigger, advance
from hookline_service.domain.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
)
from hookline_service.domain.ids import LAST_UUID, bucket_of, first_uuid_of
from hookline_service.domain.names import WILDCARD, subscription_name, tenant_name
from hookline_service.domain.subscription import SignatureScheme, Subscription, paused, resumed
from hookline_service.store import subscription_audit as audit
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.database import (
    ContentionError,
    Database,
    OutcomeUnknownError,
    RejectedError,
)
from hookline_service.store.secrets import SealedSecretError
from hookline_service.store.statements import Statements
from hookline_service.store.subscription_rows import (
    handshake_of,
    policy_columns_of,
    subscription_of,
    target_columns_of,
    version_of,
)
from hookline_service.store.subscription_secrets import (
    UNCHANGED,
    TargetSecrets,
    open_signing_secrets,
    sealer_for,
)
from hookline_service.store.uids import make_uid

SQL = Statements("subscriptions")


_TRIES = 5
_DISCARD_BATCH = 500
_UNIQUE_VIOLATION = "23505"
_BEGINNING = datetime.min.replace(tzinfo=UTC)


class NewSecret(NamedTuple):
    """A signing secret to store, in plaintext."""

    scheme: SignatureScheme
    text: str
    public_key: str = ""

    def __repr__(self) -> str:
        return f"NewSecret({self.scheme})"


class Rotation(NamedTuple):
    """The result of a rotation."""

    previous_expire_time: datetime
    """When the previous secret expires or has expired."""


class Subscriptions:
    """The subscriptions of all tenants."""

    def __init__(
        self,
        database: Database,
        secrets: TenantSecrets,
        random_bits: Callable[[int], int] = randomness.randbits,
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._random_bits = random_bits

    async def create(
        self,
        draft: Subscription,
        secret: NewSecret,
        target_secrets: TargetSecrets = UNCHANGED,
        *,
        max_of_tenant: int,
    ) -> Subscription:
        """Store a new subscription with its first signing secret; generates uid and etag.

        Raises `NotFoundError` if the tenant does not exist, `FailedPreconditionError` if it is
        being erased, `AlreadyExistsError` if the id is used, and `ResourceExhaustedError` if the
        tenant has the maximum number of subscriptions.
        """
        tenant = await self._tenant(draft.tenant_id)
        uid = make_uid(tenant["unix_us"], self._random_bits)
        sealer = await sealer_for(self._database, self._secrets, tenant, uid)
        arguments = (
            tenant["tenant_uid"],
            max_of_tenant,
            uid,
            bucket_of(uid),
            draft.subscription_id,
            *target_columns_of(draft),
            secret.scheme.value,
            *policy_columns_of(draft),
            sealer.signing_secret(secret.text, 1),
            secret.public_key,
            audit.creation(draft, uid, secret.scheme, secret.public_key),
            draft.ordered,
            draft.propagate_trace,
            sealer.target_secrets(target_secrets, draft.target, 1),
            handshake_of(draft.target),
        )
        if not await self._insert(uid, draft, arguments):
            await self._tenant(draft.tenant_id)
            raise ResourceExhaustedError(
                f"{tenant_name(draft.tenant_id)} has {max_of_tenant} subscriptions, the maximum of"
                " HOOKLINE_MAX_SUBSCRIPTIONS_PER_TENANT: delete some or raise the limit",
                Reason.QUOTA_EXCEEDED,
                metadata={
                    "subject": tenant_name(draft.tenant_id),
                    "limit": "HOOKLINE_MAX_SUBSCRIPTIONS_PER_TENANT",
                    "maximum": str(max_of_tenant),
                },
            )
        return subscription_of(await self._row(uid, draft.tenant_id, draft.subscription_id))

    async def _insert(self, uid: UUID, draft: Subscription, arguments: tuple[object, ...]) -> bool:
        """Return whether it was stored; False if the tenant is deleted or at its limit.

        A statement whose result was lost is repeated with the same uid, which shows whether the
        first one had succeeded.
        """
        was_lost = False
        for _ in range(_TRIES):
            try:
                return bool(await self._database.fetch(SQL.create, *arguments))
            except ContentionError:
                continue
            except OutcomeUnknownError:
                if was_lost:
                    raise
                was_lost = True
            except RejectedError as error:
                if error.sqlstate != _UNIQUE_VIOLATION:
                    raise
                if was_lost and await self._database.fetch(SQL.read, [uid]):
                    return True
                name = subscription_name(draft.tenant_id, draft.subscription_id)
                raise AlreadyExistsError(
                    f"{name} already exists", Reason.SUBSCRIPTION_ALREADY_EXISTS
                ) from None
        raise _concurrent(draft.tenant_id, draft.subscription_id)

    async def now(self) -> datetime:
        """Return the time of the database."""
        (row,) = await self._database.fetch(SQL.now)
        now: datetime = row["now"]
        return now

    async def get(self, tenant_id: str, subscription_id: str) -> Subscription:
        """Return a subscription; with `tenant_id` `-`, that of any tenant if the id is unique."""
        return subscription_of(await self._find(tenant_id, subscription_id))

    async def list_page(
        self, tenant_id: str, *, before: UUID = LAST_UUID, limit: int
    ) -> list[Subscription]:
        """Return up to `limit` subscriptions before a uid, newest first; `-`: all tenants."""
        if tenant_id == WILDCARD:
            uids = await self._database.fetch(SQL.list_of_all, before, limit)
        else:
            tenant = await self._tenant(tenant_id, may_be_deleting=True)
            uids = await self._database.fetch(
                SQL.list_of_tenant, tenant["tenant_uid"], before, limit
            )
        rows = await self._database.fetch(SQL.read, [row["subscription_uid"] for row in uids])
        rows.sort(key=lambda row: row["subscription_uid"], reverse=True)
        return [subscription_of(row) for row in rows]

    async def change(
        self,
        tenant_id: str,
        subscription_id: str,
        decide: Callable[[Subscription], Subscription],
        target_secrets: TargetSecrets = UNCHANGED,
        *,
        etag: str = "",
        clears_failures: bool = False,
        is_forced: bool = False,
    ) -> Subscription:
        """Write the result of `decide` for the current subscription, unless it is equal.

        `decide` is called again after a concurrent change. An equal subscription is written if
        `is_forced`, or if there are `target_secrets`, which cannot be compared. Raises
        `AbortedError` if an etag is given and is not the current one.
        """
        for _ in range(_TRIES):
            row = await self._find(tenant_id, subscription_id)
            seen = subscription_of(row)
            _check_etag(seen, etag)
            wanted = decide(seen)
            if wanted == seen and not is_forced and not target_secrets:
                return seen
            changes: list[dict[str, object]] = []
            if target_secrets:
                sealer = await sealer_for(self._database, self._secrets, row, seen.uid)
                version = version_of(seen) + 1
                changes = sealer.target_secrets(target_secrets, wanted.target, version)
            if await self._write(seen, wanted, changes, clears_failures=clears_failures):
                return await self.get(tenant_id, subscription_id)
        raise _concurrent(tenant_id, subscription_id)

    async def _write(
        self,
        seen: Subscription,
        wanted: Subscription,
        secret_changes: list[dict[str, object]],
        *,
        clears_failures: bool,
    ) -> bool:
        reason = wanted.state_reason
        arguments = (
            seen.uid,
            version_of(seen),
            *target_columns_of(wanted),
            *policy_columns_of(wanted),
            wanted.state.value,
            reason and reason.value,
            wanted.state_message,
            clears_failures,
            audit.change(seen, wanted),
            wanted.propagate_trace,
            secret_changes,
            handshake_of(wanted.target),
        )
        return bool(await self._fetch_changing(SQL.update, *arguments))

    async def _fetch_changing(self, statement: str, *args: object) -> list[asyncpg.Record]:
        """Return the rows of a guarded change; none after a concurrent change or a deadlock."""
        try:
            return await self._database.fetch(statement, *args)
        except ContentionError:
            return []

    async def pause(self, tenant_id: str, subscription_id: str) -> Subscription:
        """Pause a subscription, also a disabled one; a paused one stays unchanged."""
        return await self.change(tenant_id, subscription_id, paused)

    async def resume(
        self, tenant_id: str, subscription_id: str, *, discard_before: datetime | None = None
    ) -> Subscription:
        """Resume a subscription, after cancelling the deliveries of events before `discard_before`.

        Deliveries are cancelled in batches, each in a transaction: after a crash the rest is
        pending and the subscription is still paused, and the call can be repeated.
        """
        discarded = 0
        if discard_before is not None:
            discarded = await self._discard(tenant_id, subscription_id, discard_before)
        return await self.change(
            tenant_id, subscription_id, resumed, clears_failures=True, is_forced=discarded > 0
        )

    async def _discard(self, tenant_id: str, subscription_id: str, before: datetime) -> int:
        row = await self._find(tenant_id, subscription_id)
        entry = audit.discard(tenant_id, subscription_id)
        bound = first_uuid_of(math.ceil(before.timestamp() * 1_000))
        state = advance(DeliveryState.PENDING, Trigger.CANCELLED)
        due_at = _BEGINNING
        discarded = 0
        while True:
            batch = await self._database.fetch(
                SQL.discard,
                row["bucket"],
                row["subscription_uid"],
                bound,
                due_at,
                _DISCARD_BATCH,
                row["tenant_uid"],
                entry,
                state,
            )
            discarded += len(batch)
            if len(batch) < _DISCARD_BATCH:
                return discarded
            due_at = batch[-1]["due_at"]

    async def rotate(
        self, tenant_id: str, subscription_id: str, secret: NewSecret, *, overlap_s: float
    ) -> Rotation:
        """Make a secret the current one; the previous one also signs for `overlap_s` seconds.

        Importing the current secret changes nothing, so an import can be repeated.
        """
        for _ in range(_TRIES):
            row = await self._find(tenant_id, subscription_id)
            if self._is_current(row, secret):
                return Rotation(
                    max(filter(None, row["key_expire_times"]), default=row["read_time"])
                )
            current: int = row["key_versions"][0]
            sealer = await sealer_for(self._database, self._secrets, row, row["subscription_uid"])
            rows = await self._fetch_changing(
                SQL.rotate,
                row["subscription_uid"],
                row["version"],
                current,
                overlap_s,
                secret.scheme.value,
                sealer.signing_secret(secret.text, current + 1),
                secret.public_key,
                audit.rotation(subscription_of(row), secret.scheme, secret.public_key, overlap_s),
            )
            if rows:
                return Rotation(rows[0]["expire_time"])
        raise _concurrent(tenant_id, subscription_id)

    def _is_current(self, row: asyncpg.Record, secret: NewSecret) -> bool:
        try:
            return open_signing_secrets(row, self._secrets)[0].text == secret.text
        except SealedSecretError:
            return False  # its key is lost: a rotation replaces the secret

    async def delete(self, tenant_id: str, subscription_id: str, *, etag: str = "") -> None:
        """Delete a subscription; the owner of its bucket cancels its pending deliveries."""
        for _ in range(_TRIES):
            seen = await self.get(tenant_id, subscription_id)
            _check_etag(seen, etag)
            entry = audit.deletion(seen)
            if await self._fetch_changing(SQL.delete, seen.uid, version_of(seen), entry):
                return
        raise _concurrent(tenant_id, subscription_id)

    async def _tenant(self, tenant_id: str, *, may_be_deleting: bool = False) -> asyncpg.Record:
        row = await self._database.fetchrow(SQL.find_tenant, tenant_id)
        if row is None:
            raise NotFoundError(f"there is no {tenant_name(tenant_id)}", Reason.TENANT_NOT_FOUND)
        if row["state"] != "ACTIVE" and not may_be_deleting:
            raise FailedPreconditionError(
                f"{tenant_name(tenant_id)} is being erased", Reason.TENANT_DELETING
            )
        return row

    async def _find(self, tenant_id: str, subscription_id: str) -> asyncpg.Record:
        found = await self._database.fetch(SQL.find, tenant_id, subscription_id)
        if not found:
            _raise_not_found(tenant_id, subscription_id)
        if len(found) > 1:
            raise FailedPreconditionError(
                f"several tenants have a subscription {subscription_id}: name the tenant",
                Reason.FIELD_INVALID,
            )
        return await self._row(found[0]["subscription_uid"], tenant_id, subscription_id)

    async def _row(self, uid: UUID, tenant_id: str, subscription_id: str) -> asyncpg.Record:
        row = await self._database.fetchrow(SQL.read, [uid])
        if row is None or row["deleted_at"] is not None:
            _raise_not_found(tenant_id, subscription_id)
        return row


def _check_etag(seen: Subscription, etag: str) -> None:
    if etag and etag != seen.etag:
        name = subscription_name(seen.tenant_id, seen.subscription_id)
        raise AbortedError(
            f"{name} was changed after its etag was read: read it again and repeat the change",
            Reason.ETAG_MISMATCH,
        )


def _concurrent(tenant_id: str, subscription_id: str) -> AbortedError:
    name = subscription_name(tenant_id, subscription_id)
    return AbortedError(
        f"{name} is being changed concurrently: repeat the call", Reason.CONCURRENT_CHANGE
    )


def _raise_not_found(tenant_id: str, subscription_id: str) -> NoReturn:
    name = subscription_name(tenant_id, subscription_id)
    raise NotFoundError(f"there is no {name}", Reason.SUBSCRIPTION_NOT_FOUND)
