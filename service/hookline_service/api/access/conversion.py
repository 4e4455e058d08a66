"""Conversions of API keys and audit entries between the contract and the domain."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from hookline.v1 import api_key_pb2, audit_entry_pb2
from hookline_service.api.conversion.names import tenant_id_in
from hookline_service.api.conversion.text import display_name_in
from hookline_service.api.conversion.values import datetime_in, enum_in, enum_of, timestamp_of
from hookline_service.api.middleware.scopes import bound_to_one_tenant
from hookline_service.domain.api_key import ApiKey, api_key_name
from hookline_service.domain.audit import AuditEntry
from hookline_service.domain.caller import Scope, current_caller
from hookline_service.domain.errors import PermissionDeniedError, Reason, Violation
from hookline_service.domain.names import tenant_name
from hookline_service.store.api_keys import NewApiKey

_SCOPES_MAX: Final = 100


def draft_in(message: api_key_pb2.ApiKey, violations: list[Violation]) -> NewApiKey:
    """Return the key to create; raise `PermissionDeniedError` for another tenant."""
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
            violations.append(Violation(path, "must not be API_KEY_SCOPE_UNSPECIFIED"))
        elif scope := enum_in(
            number, api_key_pb2.ApiKeyScope, "API_KEY_SCOPE_", Scope, path, violations
        ):
            found.add(scope)
    if not numbers:
        violations.append(Violation(field, "is required", Reason.FIELD_REQUIRED))
    return frozenset(found)


def check_scopes(scopes: frozenset[Scope]) -> None:
    """Raise `PermissionDeniedError` for scopes that the caller does not have."""
    caller = current_caller()
    beyond = sorted(scope for scope in scopes if not caller.may(scope))
    if beyond:
        raise PermissionDeniedError(
            "a key may not have scopes that its creator lacks: the caller lacks"
            f" {' and '.join(beyond)}",
            Reason.PERMISSION_DENIED,
            metadata={"scope": ",".join(beyond)},
        )


def key_message(key: ApiKey) -> api_key_pb2.ApiKey:
    """Return the message of a key, without its token."""
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


def audit_entry_message(entry: AuditEntry) -> audit_entry_pb2.AuditEntry:
    """Return the message of an audit entry, with all fields that its hash covers."""
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
