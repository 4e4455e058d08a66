"""Access rules: which callers may call an RPC.

The rule of each RPC is in `methods.py`. The tenant whose data a call may touch is checked
separately, by the resource names in its request (`api/conversion/names.py`): the name of another
tenant's resource is answered like the name of a missing resource.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hookline_service.domain.caller import Caller, Scope
from hookline_service.domain.errors import PermissionDeniedError, Reason


@dataclass(frozen=True, slots=True)
class AccessRule:
    """The callers that may call a method."""

    scopes: tuple[Scope, ...] = ()
    """The caller needs one of these; empty: every authenticated caller may call it."""
    is_open: bool = False
    """The method is called without authentication."""
    is_of_all_tenants: bool = False
    """The method touches what belongs to no tenant: callers bound to one tenant are refused."""

    def check(self, caller: Caller) -> None:
        """Raise `PermissionDeniedError`, which names the missing scope."""
        if self.scopes and not any(map(caller.may, self.scopes)):
            needed = " or ".join(self.scopes)
            raise PermissionDeniedError(
                f"this call needs the scope {needed}, which the caller lacks",
                Reason.PERMISSION_DENIED,
                metadata={"scope": ",".join(self.scopes)},
            )
        if self.is_of_all_tenants and caller.tenant_id is not None:
            raise bound_to_one_tenant("this call")


OPEN: Final = AccessRule(is_open=True)
AUTHENTICATED: Final = AccessRule()
"""Also the rule of unknown methods: an unauthenticated client cannot find out which exist."""


def bound_to_one_tenant(what: str) -> PermissionDeniedError:
    """Return the refusal of a call that is not for callers bound to one tenant."""
    return PermissionDeniedError(
        f"{what} is for callers of all tenants, and this one is bound to one tenant",
        Reason.PERMISSION_DENIED,
    )
