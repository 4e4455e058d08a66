"""Subscriptions as tenants keep them: created, read, changed, given new secrets, deleted.

Theory of operation. A change is decided on a version and written only over that version: `change`
reads, lets its caller decide, writes, and begins anew if somebody was quicker, unless the caller
named the etag that he had decided on. Each write is one statement which also gives the subscription
the tenant's next epoch, tells the change log, so that the very next publish on any node honours it,
and is audited.

Must not know what a field may hold (the API has checked it), nor who matches or sends.
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
from hookline_service.domain.ids import bucket_of, first_uuid_of
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

NEWEST = UUID(int=(1 << 128) - 1)
"""Where a list begins: behind every uid."""

_TRIES = 5
_DISCARD_BATCH = 500
_UNIQUE_VIOLATION = "23505"
_BEGINNING = datetime.min.replace(tzinfo=UTC)


class NewSecret(NamedTuple):
    """A signing secret to store, in clear."""

    scheme: SignatureScheme
    text: str
    public_key: str = ""

    def __repr__(self) -> str:
        return f"NewSecret({self.scheme})"


class Rotation(NamedTuple):
    """What a rotation came to."""

    previous_expire_time: datetime
    """When the secret before this one stops signing, or has stopped."""


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
        """Store a new subscription with its first secret; the draft's uid and etag are made here.

        `NotFoundError`, `FailedPreconditionError`: the tenant is not there, or being erased.
        `AlreadyExistsError`: the id is taken. `ResourceExhaustedError`: the tenant has as many as
        it may.
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
                f"{tenant_name(draft.tenant_id)} has {max_of_tenant} subscriptions, as many as"
                " HOOKLINE_MAX_SUBSCRIPTIONS_PER_TENANT allows",
                Reason.QUOTA_EXCEEDED,
                metadata={
                    "subject": tenant_name(draft.tenant_id),
                    "limit": "HOOKLINE_MAX_SUBSCRIPTIONS_PER_TENANT",
                    "maximum": str(max_of_tenant),
                },
            )
        return subscription_of(await self._row(uid, draft.tenant_id, draft.subscription_id))

    async def _insert(self, uid: UUID, draft: Subscription, arguments: tuple[object, ...]) -> bool:
        """Whether it is stored; not, where the tenant is gone or full.

        A statement whose answer was lost is run again as it was: its uid tells whether it had been
        done.
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
                    f"{name} is there already", Reason.SUBSCRIPTION_ALREADY_EXISTS
                ) from None
        raise _concurrent(draft.tenant_id, draft.subscription_id)

    async def now(self) -> datetime:
        """The engine's notion of now: the database's."""
        (row,) = await self._database.fetch(SQL.now)
        now: datetime = row["now"]
        return now

    async def get(self, tenant_id: str, subscription_id: str) -> Subscription:
        """One live subscription; of any tenant where `tenant_id` is `-` and the id says which."""
        return subscription_of(await self._find(tenant_id, subscription_id))

    async def list_page(
        self, tenant_id: str, *, before: UUID = NEWEST, limit: int
    ) -> list[Subscription]:
        """Up to `limit` live ones older than `before`, newest first; `-`: of all tenants."""
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
        """Write what `decide` makes of the current subscription; nothing where that is equal.

        `decide` may be asked again where somebody was quicker. `is_forced` writes what is equal,
        too, and so do `target_secrets`, of which nobody can tell. `AbortedError`: the etag, if
        there is one, is not the current one.
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
        """The rows of a guarded change; none where the version moved on, or a deadlock was lost."""
        try:
            return await self._database.fetch(statement, *args)
        except ContentionError:
            return []

    async def pause(self, tenant_id: str, subscription_id: str) -> Subscription:
        """Hold its deliveries, whatever held them before; a paused one stays as it is."""
        return await self.change(tenant_id, subscription_id, paused)

    async def resume(
        self, tenant_id: str, subscription_id: str, *, discard_before: datetime | None = None
    ) -> Subscription:
        """Let its deliveries go out, but cancel first those of events accepted before a moment.

        Cancelling goes in batches, each a transaction: a crash leaves the rest pending and the
        subscription held, and calling again goes on.
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
        """Make a secret the current one; the one before signs on for the overlap, in seconds.

        Importing the current secret changes nothing, so that an import may be repeated.
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
            return False  # its key is lost: a rotation is how the owner recovers

    async def delete(self, tenant_id: str, subscription_id: str, *, etag: str = "") -> None:
        """End a subscription; the owner of its bucket cancels what is pending."""
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
            f"{name} was changed since its etag was read: read it again", Reason.ETAG_MISMATCH
        )


def _concurrent(tenant_id: str, subscription_id: str) -> AbortedError:
    name = subscription_name(tenant_id, subscription_id)
    return AbortedError(f"{name} is being changed by others: repeat", Reason.CONCURRENT_CHANGE)


def _raise_not_found(tenant_id: str, subscription_id: str) -> NoReturn:
    name = subscription_name(tenant_id, subscription_id)
    raise NotFoundError(f"there is no {name}", Reason.SUBSCRIPTION_NOT_FOUND)
