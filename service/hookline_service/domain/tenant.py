"""A tenant: a customer of the platform, who owns subscriptions, events and deliveries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

DEFAULT_TENANT_ID = "default"
"""The tenant that always exists and cannot be deleted."""


class TenantState(StrEnum):
    """Whether a tenant takes work."""

    ACTIVE = "ACTIVE"
    DELETING = "DELETING"
    """Deleted by force and being erased; takes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """The whole resource."""

    tenant_id: str
    uid: UUID
    """Drawn at creation; a recreated name has another, and inherits nothing."""
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    state: TenantState = TenantState.ACTIVE
    create_time: datetime | None = None
