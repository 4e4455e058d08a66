"""Resource names in requests: parses ids, and adds violations.

Each function returns a harmless placeholder for an invalid name, so that the other fields of the
request are checked, too; its caller raises `invalid(violations)` before it uses the result.

A caller that is bound to one tenant gets NOT_FOUND here for every name of another tenant, before
any database query, whether the other tenant exists or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from hookline_service.api.middleware.scopes import bound_to_one_tenant
from hookline_service.domain.api_key import check_key_id
from hookline_service.domain.caller import current_caller
from hookline_service.domain.errors import NotFoundError, Reason, Violation
from hookline_service.domain.ids import parse_type_id
from hookline_service.domain.names import WILDCARD, check_event_type, check_id, parse_name

NO_ID = UUID(int=0)

_REASONS: Final = {
    "tenants": Reason.TENANT_NOT_FOUND,
    "subscriptions": Reason.SUBSCRIPTION_NOT_FOUND,
    "events": Reason.EVENT_NOT_FOUND,
    "deliveries": Reason.DELIVERY_NOT_FOUND,
    "replays": Reason.REPLAY_NOT_FOUND,
}
"""The reason of NOT_FOUND by the last collection of a name."""


def tenant_id_in(
    name: str, violations: list[Violation], *, field: str = "tenant", across: bool = False
) -> str:
    """Return the id in `tenants/ID`; with `across`, `tenants/-` is allowed (reads)."""
    count = len(violations)
    ids = _ids_in(name, field, "tenants/ID", ("tenants",), violations)
    if not ids:
        return ""
    tenant_id = _tenant_id(ids[0], field, violations, across=across)
    if len(violations) == count:
        _check_owner(tenant_id, name, "tenants")
    return tenant_id


def tenant_and_id_in(
    name: str,
    collection: str,
    violations: list[Violation],
    *,
    field: str = "name",
    across: bool = False,
) -> tuple[str, str]:
    """Return both ids of a name such as `tenants/ID/subscriptions/ID`."""
    count = len(violations)
    shape = f"tenants/ID/{collection}/ID"
    ids = _ids_in(name, field, shape, ("tenants", collection), violations)
    if not ids:
        return "", ""
    tenant_id = _tenant_id(ids[0], field, violations, across=across)
    problem = check_id(ids[1])
    if problem:
        violations.append(Violation(field, f"its last part {problem}"))
    if len(violations) == count:
        _check_owner(tenant_id, name, collection)
    return tenant_id, ids[1]


def tenant_and_uuid_in(
    name: str,
    collection: str,
    prefix: str,
    violations: list[Violation],
    *,
    field: str = "name",
    across: bool = False,
) -> tuple[str, UUID]:
    """Return the tenant id and the UUID of a name such as `tenants/ID/events/evt_…`."""
    count = len(violations)
    shape = f"tenants/ID/{collection}/{prefix}_…"
    ids = _ids_in(name, field, shape, ("tenants", collection), violations)
    if not ids:
        return "", NO_ID
    tenant_id = _tenant_id(ids[0], field, violations, across=across)
    uuid = parse_type_id(prefix, ids[1])
    if uuid is None:
        violations.append(
            Violation(
                field, f"its last part must be '{prefix}_' followed by the 26 letters of an id"
            )
        )
    if len(violations) == count:
        _check_owner(tenant_id, name, collection)
    return tenant_id, uuid or NO_ID


def event_type_in(name: str, violations: list[Violation], *, field: str = "name") -> str:
    """Return the id in `eventTypes/ID`."""
    return _only_id_in(name, "eventTypes", check_event_type, field, violations)


def key_id_in(name: str, violations: list[Violation], *, field: str = "name") -> str:
    """Return the id in `apiKeys/ID`."""
    return _only_id_in(name, "apiKeys", check_key_id, field, violations)


def _only_id_in(
    name: str,
    collection: str,
    check: Callable[[str], str | None],
    field: str,
    violations: list[Violation],
) -> str:
    """Return the id of a name without a tenant, such as `apiKeys/ID`."""
    ids = _ids_in(name, field, f"{collection}/ID", (collection,), violations)
    if not ids:
        return ""
    problem = check(ids[0])
    if problem:
        violations.append(Violation(field, f"its last part {problem}"))
    return ids[0]


def _ids_in(
    name: str,
    field: str,
    shape: str,
    collections: tuple[str, ...],
    violations: list[Violation],
) -> tuple[str, ...] | None:
    if not name:
        violations.append(Violation(field, f"is required: {shape}", Reason.FIELD_REQUIRED))
        return None
    ids = parse_name(name, *collections)
    if ids is None:
        violations.append(Violation(field, f"must be {shape}"))
    return ids


def _tenant_id(text: str, field: str, violations: list[Violation], *, across: bool) -> str:
    if text == WILDCARD:
        if not across:
            violations.append(
                Violation(field, "must name one tenant; tenants/- is allowed in reads only")
            )
        return text
    problem = check_id(text)
    if problem:
        violations.append(Violation(field, f"its tenant id {problem}"))
    return text


def _check_owner(tenant_id: str, name: str, collection: str) -> None:
    """Raise `NotFoundError` if the caller is bound to another tenant."""
    bound = current_caller().tenant_id
    if bound is None or tenant_id == bound:
        return
    if tenant_id == WILDCARD:
        raise bound_to_one_tenant("tenants/-")
    raise NotFoundError(f"there is no {name}", _REASONS[collection])
