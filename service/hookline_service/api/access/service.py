"""AccessService: manages API keys and lists the audit log.

A token is returned once, by CreateApiKey. A caller bound to a tenant sees and creates only keys of
that tenant. No caller creates a key with more permissions than its own, or with a later expiry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from grpc.aio import ServicerContext

from hookline.v1 import access_service_pb2, access_service_pb2_grpc
from hookline_service.api.access.conversion import (
    audit_entry_message,
    check_scopes,
    draft_in,
    key_message,
)
from hookline_service.api.conversion.names import key_id_in, tenant_id_in
from hookline_service.api.conversion.paging import Pages, time_cursor
from hookline_service.domain.caller import current_caller
from hookline_service.domain.errors import Violation, invalid
from hookline_service.domain.limits import Limits
from hookline_service.store.api_keys import ApiKeys
from hookline_service.store.audit import NEWEST as NEWEST_ENTRY
from hookline_service.store.audit import AuditLog

_Context = ServicerContext[Any, Any]
_SEQUENCE_BYTES: Final = 8


class AccessServicer(access_service_pb2_grpc.AccessServiceServicer):
    """Implements AccessService."""

    def __init__(
        self,
        *,
        keys: ApiKeys,
        forget: Callable[[str], None],
        log: AuditLog,
        pages: Pages,
        limits: Limits,
    ) -> None:
        """`forget` removes a key, by its id, from this node's cache."""
        self._log = log
        self._pages = pages
        self._limits = limits
        self._keys = keys
        self._forget = forget

    async def CreateApiKey(
        self, request: access_service_pb2.CreateApiKeyRequest, context: _Context
    ) -> access_service_pb2.CreateApiKeyResponse:
        """Create a key and return it with its token."""
        del context
        violations: list[Violation] = []
        draft = draft_in(request.api_key, violations)
        if draft.expire_time and draft.expire_time <= await self._keys.now():
            violations.append(Violation("api_key.expire_time", "must be in the future"))
        if violations:
            raise invalid(violations)
        check_scopes(draft.scopes)
        key, token = await self._keys.create(draft)
        return access_service_pb2.CreateApiKeyResponse(api_key=key_message(key), token=token)

    async def ListApiKeys(
        self, request: access_service_pb2.ListApiKeysRequest, context: _Context
    ) -> access_service_pb2.ListApiKeysResponse:
        """List API keys, newest first."""
        del context
        violations: list[Violation] = []
        tenant_id = current_caller().tenant_id
        binding = ("ListApiKeys", tenant_id or "")
        page = self._pages.requested(request, binding, violations)
        found = await self._keys.list_page(
            tenant_id,
            before=page.before_time_and_key,
            limit=page.size + 1,
        )
        kept, token = self._pages.finished(
            [key_message(key) for key in found[: page.size]],
            binding,
            lambda at: time_cursor(found[at].create_time, found[at].key_id),
            has_more=len(found) > page.size,
        )
        return access_service_pb2.ListApiKeysResponse(api_keys=kept, next_page_token=token)

    async def RevokeApiKey(
        self, request: access_service_pb2.RevokeApiKeyRequest, context: _Context
    ) -> access_service_pb2.RevokeApiKeyResponse:
        """Revoke a key: on this node immediately, on every other node within 5 seconds."""
        del context
        violations: list[Violation] = []
        key_id = key_id_in(request.name, violations)
        if violations:
            raise invalid(violations)
        key = await self._keys.revoke(key_id, current_caller().tenant_id)
        self._forget(key_id)
        return access_service_pb2.RevokeApiKeyResponse(api_key=key_message(key))

    async def ListAuditEntries(
        self, request: access_service_pb2.ListAuditEntriesRequest, context: _Context
    ) -> access_service_pb2.ListAuditEntriesResponse:
        """List the audit entries of a tenant or of all tenants, newest first."""
        del context
        violations: list[Violation] = []
        tenant_id = tenant_id_in(request.tenant, violations, across=True)
        binding = ("ListAuditEntries", tenant_id)
        page = self._pages.requested(request, binding, violations)
        found = await self._log.page(
            tenant_id,
            before=int.from_bytes(page.cursor, "big") if page.cursor else NEWEST_ENTRY,
            limit=page.size,
            max_bytes=self._limits.max_page_bytes,
        )
        messages = [audit_entry_message(entry) for entry in found.entries]
        kept, token = self._pages.finished(
            messages,
            binding,
            lambda at: messages[at].sequence.to_bytes(_SEQUENCE_BYTES, "big"),
            has_more=found.has_more,
        )
        return access_service_pb2.ListAuditEntriesResponse(
            audit_entries=kept, next_page_token=token
        )
