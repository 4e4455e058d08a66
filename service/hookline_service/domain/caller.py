"""Who asks: the identity on whose behalf a call runs, and what it may do.

The API sets it once per call, at the door; what writes an audit entry reads it where it writes. The
service's own tasks have none set, and act as `SERVICE`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Scope(StrEnum):
    """What a caller may do; the names are those of the contract's `ApiKeyScope`."""

    PUBLISH = "PUBLISH"
    CONSUME = "CONSUME"
    MANAGE = "MANAGE"
    OPERATE = "OPERATE"
    ADMIN = "ADMIN"
    """All of these, and what only it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """One call's identity."""

    principal: str
    """`apiKeys/ID`, a certificate's or a token's subject, `anonymous`, or `hookline`."""
    scopes: frozenset[Scope]
    tenant_id: str | None = None
    """The one tenant it is bound to; None: all."""
    expire_time: datetime | None = None
    """When its credentials end; None: never. No key that it creates may end later."""
    method: str = ""
    """The RPC's full name, `/hookline.v1.TenantService/GetTenant`."""
    remote_address: str = ""
    """From where, as gRPC names a peer."""
    trace_id: str = ""
    """32 hexadecimal digits; empty where the call is not sampled."""

    def may(self, scope: Scope) -> bool:
        """Whether the scope is among its own, or it is an administrator's."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


SERVICE = Caller(principal="hookline", scopes=frozenset(Scope))
"""The service itself, at work of its own."""

_CURRENT: ContextVar[Caller] = ContextVar("caller", default=SERVICE)


def current_caller() -> Caller:
    """The caller of the task that asks."""
    return _CURRENT.get()


@contextmanager
def calling(caller: Caller) -> Iterator[Caller]:
    """While inside, the task acts for this caller."""
    token = _CURRENT.set(caller)
    try:
        yield caller
    finally:
        _CURRENT.reset(token)
