"""Audit policies: which calls the audit log records. The policy of each RPC is in `methods.py`.

The store records a change, in the transaction that makes it. A privileged read has no transaction:
it is recorded here, after the store has answered and before the caller is answered, so that a read
that cannot be recorded is not answered. A refused call changes and discloses nothing, and leaves no
entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from hookline.v1 import event_pb2
from hookline_service.domain.caller import current_caller
from hookline_service.domain.names import WILDCARD


class AuditLog(Protocol):
    """The log that privileged reads are recorded in."""

    async def add_read(self, resource: str, tenant_id: str) -> None:
        """Record a read by the current caller; return once the entry is stored."""
        ...


@dataclass(frozen=True, slots=True)
class Changes:
    """The call changes something, and the store records the change."""


@dataclass(frozen=True, slots=True)
class Reads:
    """The call reads, and is recorded if the read is privileged."""

    is_privileged: Callable[[Any, str], bool]
    """Takes the request and the resource name in it."""
    answered_field: str = ""
    """The response's field that holds the resource: its name includes the tenant where the request
    names all tenants (`tenants/-`). Empty: the entry names what the request names."""

    async def record(
        self, audit_log: AuditLog, request: object, requested: str, response: object = None
    ) -> None:
        """Record the read if it is privileged. `requested` is the resource name in the request."""
        if self.is_privileged(request, requested):
            field = self.answered_field
            resource = str(getattr(response, field).name) if field else requested
            await audit_log.add_read(resource, _tenant_id_in(resource))


@dataclass(frozen=True, slots=True)
class NotAudited:
    """The call is not recorded."""

    reason: str


AuditPolicy: TypeAlias = Changes | Reads | NotAudited


def _tenant_id_in(resource: str) -> str:
    collection, _, rest = resource.partition("/")
    tenant_id = rest.partition("/")[0]
    return tenant_id if collection == "tenants" and tenant_id != WILDCARD else ""


def _always(request: object, requested: str) -> bool:
    del request, requested
    return True


def _across_tenants(request: object, requested: str) -> bool:
    del request
    return requested.startswith(f"tenants/{WILDCARD}")


def _with_payloads(request: Any, requested: str) -> bool:  # noqa: ANN401 (any message)
    return request.view == event_pb2.EVENT_VIEW_FULL or _across_tenants(request, requested)


def _by_caller_of_all_tenants(request: object, requested: str) -> bool:
    del request, requested
    return current_caller().tenant_id is None


CHANGES: Final = Changes()
DATA_PATH: Final = NotAudited("publishing stores each event with its time")
ORDINARY_READ: Final = NotAudited("reads one tenant without payloads, or data of no tenant")
SERVICE_STATE: Final = NotAudited("reads the service's state, which monitoring polls")
READS: Final = Reads(_always)
READS_ACROSS_TENANTS: Final = Reads(_across_tenants)
READS_PAYLOADS: Final = Reads(_with_payloads)
READS_BY_CALLER_OF_ALL_TENANTS: Final = Reads(_by_caller_of_all_tenants)


def reads_one(field: str) -> Reads:
    """Return the policy of a read of one resource, recorded across tenants; it answers `field`."""
    return Reads(_across_tenants, field)


def always_reads_one(field: str) -> Reads:
    """Return the policy of a read of one resource that is always recorded; it answers `field`."""
    return Reads(_always, field)
