"""What a certificate or a token is good for: scopes, and the tenant that it is bound to.

Both are said in words that come from outside; `-` stands for all tenants, and has to be said.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hookline_service.domain.caller import Scope
from hookline_service.domain.names import WILDCARD, check_id

ALL_TENANTS: Final = WILDCARD


@dataclass(frozen=True, slots=True)
class Grant:
    """What somebody may do, and to whose data."""

    scopes: frozenset[Scope]
    tenant_id: str | None
    """None: all."""


def scopes_of(words: Iterable[object]) -> frozenset[Scope]:
    """Scopes by their names, in any casing. Raises ValueError with what is allowed."""
    try:
        return frozenset(Scope(str(word).upper()) for word in words)
    except ValueError:
        known = ", ".join(scope.lower() for scope in Scope)
        raise ValueError(f"scopes must be among {known}") from None


def tenant_of(word: object) -> str | None:
    """A tenant's id; None for `-`. Raises ValueError with what is allowed."""
    if word == ALL_TENANTS:
        return None
    problem = check_id(word) if isinstance(word, str) else "must be a text"
    if problem is not None:
        raise ValueError(f'tenant must be an id, or "{ALL_TENANTS}" for all; an id {problem}')
    return str(word)
