"""AccessService's list of the audit log: pages of entries, newest first. The rest inherits it."""

from __future__ import annotations

from typing import Any, Final

from grpc.aio import ServicerContext

from hookline.v1 import access_service_pb2, access_service_pb2_grpc, audit_entry_pb2
from hookline_service.api.conversion.names import tenant_id_in
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.conversion.values import timestamp_of
from hookline_service.domain.audit import AuditEntry
from hookline_service.domain.errors import Violation
from hookline_service.domain.limits import Limits
from hookline_service.store.audit import NEWEST, AuditLog

_Context = ServicerContext[Any, Any]
_SEQUENCE_BYTES: Final = 8


class AuditEntryServicer(access_service_pb2_grpc.AccessServiceServicer):
    """The call of AccessService that shows who did what."""

    def __init__(self, *, log: AuditLog, pages: Pages, limits: Limits) -> None:
        self._log = log
        self._pages = pages
        self._limits = limits

    async def ListAuditEntries(
        self, request: access_service_pb2.ListAuditEntriesRequest, context: _Context
    ) -> access_service_pb2.ListAuditEntriesResponse:
        """A page of a tenant's entries, or of all."""
        del context
        violations: list[Violation] = []
        tenant_id = tenant_id_in(request.tenant, violations, across=True)
        binding = ("ListAuditEntries", tenant_id)
        page = self._pages.asked(request, binding, violations)
        found = await self._log.page(
            tenant_id,
            before=int.from_bytes(page.cursor, "big") if page.cursor else NEWEST,
            limit=page.size,
            max_bytes=self._limits.max_page_bytes,
        )
        messages = [message_of(entry) for entry in found.entries]
        kept = self._pages.cut(messages)
        response = access_service_pb2.ListAuditEntriesResponse(audit_entries=kept)
        if found.has_more or len(kept) < len(messages):
            cursor = kept[-1].sequence.to_bytes(_SEQUENCE_BYTES, "big")
            response.next_page_token = self._pages.token(cursor, binding)
        return response


def message_of(entry: AuditEntry) -> audit_entry_pb2.AuditEntry:
    """An entry with all that its hash is over."""
    return audit_entry_pb2.AuditEntry(
        name=f"auditEntries/{entry.sequence}",
        create_time=timestamp_of(entry.create_time),
        principal=entry.principal,
        method=entry.method,
        resource=entry.resource,
        tenant=entry.tenant,
        remote_address=entry.remote_address,
        before_json=entry.before_json,
        after_json=entry.after_json,
        trace_id=entry.trace_id,
        sequence=entry.sequence,
        hash=entry.hash,
        tenant_uid=str(entry.tenant_uid or ""),
        encoding=entry.encoding,
    )
