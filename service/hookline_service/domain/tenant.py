"""A tenant: a customer of the platform; subscriptions, events and deliveries belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

DEFAULT_TENANT_ID = "default"
"""The tenant that always exists and cannot be deleted."""


class TenantState(StrEnum):
    """Whether a tenant accepts events and subscriptions."""

    ACTIVE = "ACTIVE"
    DELETING = "DELETING"
    """Deleted with `force` and being erased; accepts nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """The tenant resource."""

    tenant_id: str
    uid: UUID
    """Random; a tenant that is created again under the same name has another one."""
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    state: TenantState = TenantState.ACTIVE
    create_time: datetime | None = None
