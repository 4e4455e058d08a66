"""API keys: created, listed, revoked by calls; looked up, and their use noted, at the door.

Must not know how long what was looked up is believed.
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
"""Where a list begins: behind every key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewApiKey:
    """What a key is to be."""

    display_name: str
    tenant_id: str | None
    """The one tenant it is bound to; None: all."""
    scopes: frozenset[Scope]
    expire_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundKey:
    """What the door must know of a key."""

    key_id: str
    digest: bytes = field(repr=False)
    tenant_id: str | None
    scopes: frozenset[Scope]
    is_live: bool
    """Neither revoked, nor of a tenant that is deleted."""
    expires_in_s: float
    """Infinite: never."""
    expire_time: datetime | None


class ApiKeys:
    """All keys of the deployment."""

    def __init__(
        self,
        database: Database,
        deployment_key: bytes,
        below: Callable[[int], int] = randomness.randbelow,
    ) -> None:
        """`deployment_key` is what tokens are hashed with; `below` draws a number below another."""
        self._database = database
        self._deployment_key = deployment_key
        self._below = below

    async def now(self) -> datetime:
        """The engine's notion of now: the database's."""
        (row,) = await self._database.fetch(SQL.now)
        now: datetime = row["now"]
        return now

    async def create(self, draft: NewApiKey) -> tuple[ApiKey, str]:
        """A new key, and its token, this once. Raises `NotFoundError` where its tenant is not."""
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
        """Up to `limit` keys older than `before` (creation and id), newest first; None: of all."""
        if tenant_id is None:
            rows = await self._database.fetch(SQL.list, *before, limit)
        else:
            rows = await self._database.fetch(SQL.list_of_tenant, *before, limit, tenant_id)
        return [_api_key_of(row) for row in rows]

    async def revoke(self, key_id: str, tenant_id: str | None) -> ApiKey:
        """End a key of this tenant, or of any; one that is revoked stays as it is.

        Raises `NotFoundError`.
        """
        seen = await self._get(key_id, tenant_id)
        if seen.revoke_time is None:
            ended = replace(
                seen, revoke_time=seen.create_time
            )  # that it is: an entry shows no time
            await self._database.fetch(SQL.revoke, key_id, _entry(seen, ended))
            seen = await self._get(key_id, tenant_id)
        return seen

    async def _get(self, key_id: str, tenant_id: str | None) -> ApiKey:
        row = await self._database.fetchrow(SQL.get, key_id, tenant_id)
        if row is None:
            raise NotFoundError(f"there is no {api_key_name(key_id)}", Reason.API_KEY_NOT_FOUND)
        return _api_key_of(row)


class ApiKeyLookup:
    """The door's questions, on a connection of its own: no call waits for another's statement."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def find(self, key_ids: Iterable[str]) -> dict[str, FoundKey]:
        """What is known of the keys with these ids, at this moment; none: there is no such key."""
        rows = await self._session.fetch(SQL.find, list(key_ids))
        return {row["key_id"]: _found_key_of(row) for row in rows}

    async def touch(self, key_ids: Iterable[str]) -> None:
        """Note that these keys are in use, to the minute."""
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
