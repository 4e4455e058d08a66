"""Callers: the identity on whose behalf a call runs, and its scopes.

The interceptor sets it once per call; code that writes an audit entry reads it there. The service's
own tasks have none set, and act as `SERVICE`.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Scope(StrEnum):
    """A permission of a caller; the names are those of the contract's `ApiKeyScope`."""

    PUBLISH = "PUBLISH"
    CONSUME = "CONSUME"
    MANAGE = "MANAGE"
    OPERATE = "OPERATE"
    ADMIN = "ADMIN"
    """All of these, and the RPCs that only an administrator may call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """One call's identity."""

    principal: str
    """`apiKeys/ID`, a certificate's or a token's subject, `anonymous`, or `hookline`."""
    scopes: frozenset[Scope]
    tenant_id: str | None = None
    """The one tenant it is bound to; None: all."""
    expire_time: datetime | None = None
    """When its credentials end; None: never. No API key that it creates may end later."""
    method: str = ""
    """The RPC's full name, `/hookline.v1.TenantService/GetTenant`."""
    remote_address: str = ""
    """The connection's peer, as gRPC names it."""
    trace_id: str = ""
    """32 hexadecimal digits; empty where the call is not sampled."""

    def may(self, scope: Scope) -> bool:
        """Return whether the caller has the scope, or is an administrator."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def in_call(self, method: str, remote_address: str, trace_id: str) -> Caller:
        """Return the same caller, of one call."""
        return Caller(
            principal=self.principal,
            scopes=self.scopes,
            tenant_id=self.tenant_id,
            expire_time=self.expire_time,
            method=method,
            remote_address=remote_address,
            trace_id=trace_id,
        )


SERVICE = Caller(principal="hookline", scopes=frozenset(Scope))
"""The service itself, for work that no call asked for."""

_CURRENT: ContextVar[Caller] = ContextVar("caller", default=SERVICE)


def current_caller() -> Caller:
    """Return the caller of the current task."""
    return _CURRENT.get()


class calling:  # noqa: N801 - used like a function; contextlib's costs a microsecond a call
    """Context manager: while inside, the task acts for this caller."""

    __slots__ = ("_caller", "_token")

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __enter__(self) -> Caller:
        self._token: Token[Caller] = _CURRENT.set(self._caller)
        return self._caller

    def __exit__(self, *_: object) -> None:
        _CURRENT.reset(self._token)
