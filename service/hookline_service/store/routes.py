"""Reads of subscriptions for the data path: a tenant's matching index, and the routes of lanes.

Each is one statement, so that its rows are of one snapshot (rule 9 of the data path).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple, Protocol
from uuid import UUID

import asyncpg

from hookline_service.domain.subscription import (
    PayloadFormat,
    RetryPolicy,
    Subscription,
    schedule_of,
)
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.secrets import SealedSecretError
from hookline_service.store.statements import Statements
from hookline_service.store.subscription_rows import policy_of, subscription_of
from hookline_service.store.subscription_secrets import (
    UNCHANGED,
    LiveSecret,
    TargetSecrets,
    open_signing_secrets,
    open_target_secrets,
)

SQL = Statements("subscriptions")

_NO_UID = UUID(int=0)


class Reader(Protocol):
    """Runs statements: a `Database` or a `Session`."""

    async def fetch(self, statement: str, *args: object) -> list[asyncpg.Record]:
        """Return the rows of one statement."""


class IndexReader(Reader, Protocol):
    """A reader with the id of the history that it reads."""

    @property
    def history_id(self) -> UUID | None:
        """The history of its connections; None before the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRow:
    """The properties of a subscription that its lane depends on."""

    subscription: Subscription
    tenant_uid: UUID
    bucket: int
    version: int
    """The version of the subscription's row; a change that depends on this row names it."""
    is_deleted: bool
    """Whether it is a tombstone: its pending deliveries are to be cancelled."""
    failing_since: datetime | None
    secrets: tuple[LiveSecret, ...]
    """Those valid when read, newest first: one, or two in a rotation; a tombstone has none."""
    target_secrets: TargetSecrets = UNCHANGED
    """Secret headers and the client certificate of its requests, decrypted."""
    secret_fault: str = ""
    """Why a secret could not be decrypted, so that deliveries wait; empty: all were."""


class IndexRow(NamedTuple):
    """A subscription as publishing matches it."""

    subscription_uid: UUID
    bucket: int
    event_types: tuple[str, ...]
    is_deleted: bool
    first_delay_s: float
    """Seconds from an event's acceptance to its first attempt."""
    max_attempts: int
    payload_format: PayloadFormat
    is_ordered: bool


@dataclass(frozen=True, slots=True)
class IndexLoad:
    """A tenant's epoch, and the subscriptions that changed since an earlier epoch."""

    tenant_uid: UUID
    epoch: int
    is_whole: bool
    """Whether `changed` is every live subscription, and replaces what was loaded before."""
    changed: tuple[IndexRow, ...]


async def load_routes(
    reader: Reader, secrets: TenantSecrets, uids: Sequence[UUID]
) -> list[RouteRow]:
    """Return the routes of these subscriptions, unordered, including tombstones.

    Uids without a subscription are left out.
    """
    if not uids:
        return []
    return [_route_of(row, secrets) for row in await reader.fetch(SQL.read, list(uids))]


def _route_of(row: asyncpg.Record, secrets: TenantSecrets) -> RouteRow:
    live: tuple[LiveSecret, ...] = ()
    in_clear, fault = UNCHANGED, ""
    try:
        if not row["deleted_at"]:
            live = open_signing_secrets(row, secrets)
            in_clear = open_target_secrets(row, secrets)
    except SealedSecretError as error:
        live, fault = (), str(error)
    return RouteRow(
        subscription=subscription_of(row),
        tenant_uid=row["tenant_uid"],
        bucket=row["bucket"],
        version=row["version"],
        is_deleted=row["deleted_at"] is not None,
        failing_since=row["failing_since"],
        secrets=live,
        target_secrets=in_clear,
        secret_fault=fault,
    )


async def load_index(
    reader: Reader, tenant_id: str, have_epoch: int = 0, have_uid: UUID | None = None
) -> IndexLoad | None:
    """Return the changes of a live tenant's index after `have_epoch`; None: no such tenant.

    `have_uid` is the tenant uid that `have_epoch` belongs to. The whole index is returned without
    an epoch, for a tenant that was created anew under the same name, and where a later tombstone
    was pruned. Epoch and subscriptions are of one snapshot: it includes all changes up to `epoch`
    and no later one.
    """
    rows = await reader.fetch(SQL.load_index, tenant_id, have_epoch, have_uid or _NO_UID)
    if not rows:
        return None
    first = rows[0]
    return IndexLoad(
        tenant_uid=first["tenant_uid"],
        epoch=first["epoch"],
        is_whole=first["is_whole"],
        changed=tuple(_index_row_of(row) for row in rows if row["subscription_uid"] is not None),
    )


def _index_row_of(row: asyncpg.Record) -> IndexRow:
    first_delay_s, max_attempts = _budget_of(policy_of(row))
    return IndexRow(
        subscription_uid=row["subscription_uid"],
        bucket=row["bucket"],
        event_types=tuple(row["event_types"]),
        is_deleted=row["deleted"],
        first_delay_s=first_delay_s,
        max_attempts=max_attempts,
        payload_format=PayloadFormat(row["payload_format"]),
        is_ordered=row["ordered"],
    )


@lru_cache(maxsize=1_024)
def _budget_of(policy: RetryPolicy) -> tuple[float, int]:
    schedule = schedule_of(policy)
    return schedule.delays_s[0], schedule.max_attempts
