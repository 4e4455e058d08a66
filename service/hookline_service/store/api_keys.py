"""API keys: create, list and revoke; look up keys and record their use for authentication.

`api/middleware` caches the results of look-ups.
"""

from __future__ import annotations

import math
import secrets as randomness
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import asyncpg

from hookline_service.domain.api_key import ApiKey, api_key_name, digest_of, make_key_id, make_token
from hookline_service.domain.audit_view import api_key_view
from hookline_service.domain.caller import Scope
from hookline_service.domain.errors import NotFoundError, Reason
from hookline_service.domain.names import tenant_name
from hookline_service.store import audit
from hookline_service.store.database import Database, Session
from hookline_service.store.statements import Statements

SQL = Statements("api_keys")

NEWEST = (datetime.max.replace(tzinfo=UTC), "")
"""The start of a list in descending order of creation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewApiKey:
    """An API key to create."""

    display_name: str
    tenant_id: str | None
    """The tenant that it is bound to; None: all tenants."""
    scopes: frozenset[Scope]
    expire_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundKey:
    """The fields of a key that authentication needs."""

    key_id: str
    digest: bytes = field(repr=False)
    tenant_id: str | None
    scopes: frozenset[Scope]
    is_live: bool
    """Whether it is neither revoked nor bound to a deleted tenant."""
    expires_in_s: float
    """Infinite if it does not expire."""
    expire_time: datetime | None


class ApiKeys:
    """The API keys of the deployment."""

    def __init__(
        self,
        database: Database,
        deployment_key: bytes,
        below: Callable[[int], int] = randomness.randbelow,
    ) -> None:
        """`deployment_key`: the key of the token hash; `below`: a random number below n."""
        self._database = database
        self._deployment_key = deployment_key
        self._below = below

    async def now(self) -> datetime:
        """Return the time of the database."""
        (row,) = await self._database.fetch(SQL.now)
        now: datetime = row["now"]
        return now

    async def create(self, draft: NewApiKey) -> tuple[ApiKey, str]:
        """Create a key; return it with its token. Raises `NotFoundError` for the tenant."""
        key_id = make_key_id(self._below)
        token = make_token(key_id, self._below)
        wanted = ApiKey(
            key_id=key_id,
            display_name=draft.display_name,
            tenant_id=draft.tenant_id,
            scopes=draft.scopes,
            create_time=datetime.min.replace(tzinfo=UTC),
            expire_time=draft.expire_time,
        )
        row = await self._database.fetchrow(
            SQL.create,
            key_id,
            digest_of(token, self._deployment_key),
            draft.display_name,
            draft.tenant_id,
            sorted(draft.scopes),
            draft.expire_time,
            _entry(None, wanted),
        )
        if row is None:
            raise NotFoundError(
                f"there is no {tenant_name(draft.tenant_id or '')}", Reason.TENANT_NOT_FOUND
            )
        return _api_key_of(row), token

    async def list_page(
        self, tenant_id: str | None, *, before: tuple[datetime, str] = NEWEST, limit: int
    ) -> list[ApiKey]:
        """Return up to `limit` keys before `before` (time, id), newest first; None: all tenants."""
        if tenant_id is None:
            rows = await self._database.fetch(SQL.list, *before, limit)
        else:
            rows = await self._database.fetch(SQL.list_of_tenant, *before, limit, tenant_id)
        return [_api_key_of(row) for row in rows]

    async def revoke(self, key_id: str, tenant_id: str | None) -> ApiKey:
        """Revoke a key of this tenant, or of any if None; a revoked key stays unchanged.

        Raises `NotFoundError`.
        """
        seen = await self._get(key_id, tenant_id)
        if seen.revoke_time is None:
            # Audit entries show whether a key is revoked, not when.
            ended = replace(seen, revoke_time=seen.create_time)
            await self._database.fetch(SQL.revoke, key_id, _entry(seen, ended))
            seen = await self._get(key_id, tenant_id)
        return seen

    async def _get(self, key_id: str, tenant_id: str | None) -> ApiKey:
        row = await self._database.fetchrow(SQL.get, key_id, tenant_id)
        if row is None:
            raise NotFoundError(f"there is no {api_key_name(key_id)}", Reason.API_KEY_NOT_FOUND)
        return _api_key_of(row)


class ApiKeyLookup:
    """Look-ups for authentication, on a separate connection, so that they wait for no statement."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def find(self, key_ids: Iterable[str]) -> dict[str, FoundKey]:
        """Return the keys with these ids, without those that do not exist."""
        rows = await self._session.fetch(SQL.find, list(key_ids))
        return {row["key_id"]: _found_key_of(row) for row in rows}

    async def touch(self, key_ids: Iterable[str]) -> None:
        """Record that these keys are in use, with a resolution of a minute."""
        await self._session.fetch(SQL.touch, list(key_ids))

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()


def _entry(before: ApiKey | None, after: ApiKey) -> dict[str, str]:
    return audit.draft(
        api_key_name(after.key_id),
        tenant_id=after.tenant_id or "",
        before=api_key_view(before) if before else None,
        after=api_key_view(after),
    )


def _api_key_of(row: asyncpg.Record) -> ApiKey:
    return ApiKey(
        key_id=row["key_id"],
        display_name=row["display_name"],
        tenant_id=row["tenant_id"],
        scopes=frozenset(map(Scope, row["scopes"])),
        create_time=row["create_time"],
        expire_time=row["expire_time"],
        last_use_time=row["last_use_time"],
        revoke_time=row["revoke_time"],
    )


def _found_key_of(row: asyncpg.Record) -> FoundKey:
    expires_in_s = row["expires_in_s"]
    return FoundKey(
        key_id=row["key_id"],
        digest=row["digest"],
        tenant_id=row["tenant_id"],
        scopes=frozenset(map(Scope, row["scopes"])),
        is_live=row["is_live"],
        expires_in_s=math.inf if expires_in_s is None else expires_in_s,
        expire_time=row["expire_time"],
    )
