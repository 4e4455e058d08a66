"""AccessService: who may call, given and taken back.

A token leaves here once, in the answer that creates its key. Who is bound to one tenant sees and
makes keys of that tenant alone, and nobody makes one that may do more than he may, or for longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from grpc.aio import ServicerContext

from hookline.v1 import access_service_pb2, api_key_pb2
from hookline_service.api.access.audit_entries import AuditEntryServicer
from hookline_service.api.conversion.names import key_id_in, tenant_id_in
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.conversion.text import display_name_in
from hookline_service.api.conversion.values import datetime_in, enum_in, enum_of, timestamp_of
from hookline_service.api.middleware.scopes import bound_to_one_tenant
from hookline_service.domain.api_key import ApiKey, api_key_name
from hookline_service.domain.caller import Scope, current_caller
from hookline_service.domain.errors import PermissionDeniedError, Reason, Violation, invalid
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import tenant_name
from hookline_service.store.api_keys import NEWEST, ApiKeys, NewApiKey
from hookline_service.store.audit import AuditLog

_Context = ServicerContext[Any, Any]
_SCOPES_MAX: Final = 100
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_BYTES: Final = 8


class AccessServicer(AuditEntryServicer):
    """The calls of AccessService."""

    def __init__(
        self,
        *,
        keys: ApiKeys,
        forget: Callable[[str], None],
        log: AuditLog,
        pages: Pages,
        limits: Limits,
    ) -> None:
        """`forget` lets this node forget what it knows of a key, by its id."""
        super().__init__(log=log, pages=pages, limits=limits)
        self._keys = keys
        self._forget = forget

    async def CreateApiKey(
        self, request: access_service_pb2.CreateApiKeyRequest, context: _Context
    ) -> access_service_pb2.CreateApiKeyResponse:
        """A new key, and its token, this once."""
        del context
        violations: list[Violation] = []
        draft = _draft_in(request.api_key, violations)
        if draft.expire_time and draft.expire_time <= await self._keys.now():
            violations.append(Violation("api_key.expire_time", "must lie in the future"))
        if violations:
            raise invalid(violations)
        _check_scopes(draft.scopes)
        key, token = await self._keys.create(draft)
        return access_service_pb2.CreateApiKeyResponse(api_key=_message_of(key), token=token)

    async def ListApiKeys(
        self, request: access_service_pb2.ListApiKeysRequest, context: _Context
    ) -> access_service_pb2.ListApiKeysResponse:
        """A page of the keys, newest first."""
        del context
        violations: list[Violation] = []
        tenant_id = current_caller().tenant_id
        binding = ("ListApiKeys", tenant_id or "")
        page = self._pages.asked(request, binding, violations)
        found = await self._keys.list_page(
            tenant_id, before=_place_in(page.cursor), limit=page.size + 1
        )
        kept = self._pages.cut([_message_of(key) for key in found[: page.size]])
        response = access_service_pb2.ListApiKeysResponse(api_keys=kept)
        if len(kept) < len(found):
            cursor = _cursor_of(found[len(kept) - 1])
            response.next_page_token = self._pages.token(cursor, binding)
        return response

    async def RevokeApiKey(
        self, request: access_service_pb2.RevokeApiKeyRequest, context: _Context
    ) -> access_service_pb2.RevokeApiKeyResponse:
        """The end of a key: here at once, on every other node within 5 seconds."""
        del context
        violations: list[Violation] = []
        key_id = key_id_in(request.name, violations)
        if violations:
            raise invalid(violations)
        key = await self._keys.revoke(key_id, current_caller().tenant_id)
        self._forget(key_id)
        return access_service_pb2.RevokeApiKeyResponse(api_key=_message_of(key))


def _draft_in(message: api_key_pb2.ApiKey, violations: list[Violation]) -> NewApiKey:
    tenant_id: str | None = None
    if message.tenant:
        tenant_id = tenant_id_in(message.tenant, violations, field="api_key.tenant")
    elif current_caller().tenant_id is not None:
        raise bound_to_one_tenant("a key of all tenants")
    expire_time: datetime | None = None
    if message.HasField("expire_time"):
        expire_time = datetime_in(message.expire_time, "api_key.expire_time", violations)
    last = current_caller().expire_time
    if last is not None and expire_time is not None and expire_time > last:
        text = f"must not be after {last.isoformat()}, when the caller's own credentials expire"
        violations.append(Violation("api_key.expire_time", text))
    return NewApiKey(
        display_name=display_name_in(message.display_name, "api_key.display_name", violations),
        tenant_id=tenant_id,
        scopes=_scopes_in(message.scopes, violations),
        expire_time=last if expire_time is None else expire_time,
    )


def _scopes_in(
    numbers: Iterable[api_key_pb2.ApiKeyScope.ValueType], violations: list[Violation]
) -> frozenset[Scope]:
    found: set[Scope] = set()
    field = "api_key.scopes"
    for index, number in enumerate(list(numbers)[: _SCOPES_MAX + 1]):
        path = f"{field}[{index}]"
        if index == _SCOPES_MAX:
            text = f"has more than {_SCOPES_MAX} entries"
            violations.append(Violation(field, text, Reason.LIMIT_EXCEEDED))
        elif number == 0:
            violations.append(Violation(path, "must not be unspecified"))
        elif scope := enum_in(
            number, api_key_pb2.ApiKeyScope, "API_KEY_SCOPE_", Scope, path, violations
        ):
            found.add(scope)
    if not numbers:
        violations.append(Violation(field, "is required", Reason.FIELD_REQUIRED))
    return frozenset(found)


def _check_scopes(scopes: frozenset[Scope]) -> None:
    caller = current_caller()
    beyond = sorted(scope for scope in scopes if not caller.may(scope))
    if beyond:
        raise PermissionDeniedError(
            f"a key may not do more than who makes it, and the caller lacks {' and '.join(beyond)}",
            Reason.PERMISSION_DENIED,
            metadata={"scope": ",".join(beyond)},
        )


def _place_in(cursor: bytes) -> tuple[datetime, str]:
    if not cursor:
        return NEWEST
    unix_us = int.from_bytes(cursor[:_TIME_BYTES], "big")
    return _EPOCH + timedelta(microseconds=unix_us), cursor[_TIME_BYTES:].decode()


def _cursor_of(key: ApiKey) -> bytes:
    unix_us = (key.create_time - _EPOCH) // timedelta(microseconds=1)
    return unix_us.to_bytes(_TIME_BYTES, "big") + key.key_id.encode()


def _message_of(key: ApiKey) -> api_key_pb2.ApiKey:
    times = {
        name: timestamp_of(moment)
        for name, moment in (
            ("expire_time", key.expire_time),
            ("last_use_time", key.last_use_time),
            ("revoke_time", key.revoke_time),
        )
        if moment is not None
    }
    return api_key_pb2.ApiKey(
        name=api_key_name(key.key_id),
        display_name=key.display_name,
        tenant="" if key.tenant_id is None else tenant_name(key.tenant_id),
        scopes=[
            enum_of(api_key_pb2.ApiKeyScope, "API_KEY_SCOPE_", scope)
            for scope in Scope
            if scope in key.scopes
        ],
        create_time=timestamp_of(key.create_time),
        **times,
    )
