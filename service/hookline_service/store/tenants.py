"""Tenants: create, read, change, and delete empty ones.

A deletion leaves a tombstone, because the history refers to the uid; a tenant that is created again
under the same name has a new uid. Changes use optimistic concurrency, and each statement adds its
audit draft.
"""

from __future__ import annotations

import secrets as randomness
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn
from uuid import UUID

import asyncpg

from hookline_service.domain.audit_view import tenant_view
from hookline_service.domain.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    Reason,
)
from hookline_service.domain.ids import LAST_UUID
from hookline_service.domain.names import tenant_name
from hookline_service.domain.tenant import DEFAULT_TENANT_ID, Tenant, TenantState
from hookline_service.store.audit import draft
from hookline_service.store.database import Database
from hookline_service.store.statements import Statements
from hookline_service.store.uids import make_uid

SQL = Statements("tenants")


_TRIES = 5


class Tenants:
    """All tenants of the deployment."""

    def __init__(
        self, database: Database, random_bits: Callable[[int], int] = randomness.randbits
    ) -> None:
        self._database = database
        self._random_bits = random_bits

    async def ensure_default(self) -> None:
        """Create the default tenant if it does not exist."""
        await self._insert(DEFAULT_TENANT_ID, "", {}, action="EnsureDefaultTenant")

    async def create(self, tenant_id: str, display_name: str, labels: Mapping[str, str]) -> Tenant:
        """Create a tenant; raise `AlreadyExistsError` if the id is used."""
        row = await self._insert(tenant_id, display_name, labels)
        if row is None:
            raise AlreadyExistsError(
                f"{tenant_name(tenant_id)} already exists", Reason.TENANT_ALREADY_EXISTS
            )
        return _tenant_of(row)

    async def _insert(
        self, tenant_id: str, display_name: str, labels: Mapping[str, str], *, action: str = ""
    ) -> asyncpg.Record | None:
        (time,) = await self._database.fetch(SQL.database_time)
        uid = make_uid(time["unix_us"], self._random_bits)
        new = Tenant(tenant_id=tenant_id, uid=uid, display_name=display_name, labels=labels)
        return await self._database.fetchrow(
            SQL.create,
            uid,
            tenant_id,
            display_name,
            dict(labels),
            _draft(tenant_id, None, new, action),
        )

    async def get(self, tenant_id: str) -> Tenant:
        """Return a tenant; raise `NotFoundError`."""
        row = await self._database.fetchrow(SQL.get, tenant_id)
        if row is None:
            _raise_not_found(tenant_id)
        return _tenant_of(row)

    async def list_page(self, *, before: UUID = LAST_UUID, limit: int) -> list[Tenant]:
        """Return up to `limit` tenants before the uid `before`, newest first."""
        return [_tenant_of(row) for row in await self._database.fetch(SQL.list, before, limit)]

    async def update(
        self,
        tenant_id: str,
        *,
        display_name: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Tenant:
        """Change the fields that are not None; raise `NotFoundError`."""
        for _ in range(_TRIES):
            seen = await self.get(tenant_id)
            wanted = replace(
                seen,
                display_name=seen.display_name if display_name is None else display_name,
                labels=seen.labels if labels is None else dict(labels),
            )
            if wanted == seen:
                return seen
            row = await self._database.fetchrow(
                SQL.update,
                seen.uid,
                wanted.display_name,
                dict(wanted.labels),
                seen.display_name,
                dict(seen.labels),
                _draft(tenant_id, seen, wanted),
            )
            if row is not None:
                return _tenant_of(row)
        raise AbortedError(
            f"{tenant_name(tenant_id)} is being changed concurrently: repeat the call",
            Reason.CONCURRENT_CHANGE,
        )

    async def delete(self, tenant_id: str) -> None:
        """Delete an empty tenant; its tombstone has an epoch that no publish has matched under.

        Raises `FailedPreconditionError` for the default tenant, and if there are subscriptions or
        pending deliveries. Those of a deleted subscription are pending until the owner of its
        bucket has cancelled them.
        """
        name = tenant_name(tenant_id)
        if tenant_id == DEFAULT_TENANT_ID:
            raise FailedPreconditionError(f"{name} cannot be deleted", Reason.TENANT_PROTECTED)
        async with self._database.transaction() as connection:
            tenant = await connection.fetchrow(SQL.lock, tenant_id)
            if tenant is None:
                _raise_not_found(tenant_id)
            if tenant["subscription_count"]:
                raise FailedPreconditionError(
                    f"{name} has {tenant['subscription_count']} subscriptions: delete them first",
                    Reason.TENANT_NOT_EMPTY,
                )
            if await connection.fetchval(SQL.has_pending, tenant["tenant_uid"]):
                raise FailedPreconditionError(
                    f"{name} has pending deliveries of deleted subscriptions, which are being"
                    " cancelled: repeat the call in a few seconds",
                    Reason.TENANT_NOT_EMPTY,
                )
            entry = _draft(tenant_id, _tenant_of(tenant), None)
            await connection.execute(SQL.delete, tenant["tenant_uid"], entry)


def _draft(
    tenant_id: str, before: Tenant | None, after: Tenant | None, action: str = ""
) -> dict[str, str]:
    return draft(
        tenant_name(tenant_id),
        tenant_id=tenant_id,
        before=tenant_view(before) if before else None,
        after=tenant_view(after) if after else None,
        action=action,
    )


def _tenant_of(row: asyncpg.Record) -> Tenant:
    return Tenant(
        tenant_id=row["tenant_id"],
        uid=row["tenant_uid"],
        display_name=row["display_name"],
        labels=row["labels"],
        state=TenantState(row["state"]),
        create_time=row["create_time"],
    )


def _raise_not_found(tenant_id: str) -> NoReturn:
    raise NotFoundError(f"there is no {tenant_name(tenant_id)}", Reason.TENANT_NOT_FOUND)
