"""A source of identity that a test decides on: a word in the call's metadata names its caller."""

from __future__ import annotations

from service.api.authentication import AuthContext, Metadata
from service.domain.caller import Caller, Scope
from service.domain.errors import Reason, UnavailableError, unauthenticated

ALL = frozenset(Scope)


def caller(*scopes: Scope, tenant: str | None = None) -> Caller:
    return Caller(principal="somebody", scopes=frozenset(scopes or ALL), tenant_id=tenant)


class Words:
    """Knows callers by the word under `who`; nobody is who says nothing."""

    def __init__(self, **callers: Caller) -> None:
        self.callers = callers
        self.asked: list[tuple[str, str]] = []
        """The word and the peer, each time."""
        self.is_away = False

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        del auth_context
        word = dict(metadata).get("who")
        if not isinstance(word, str):
            return None
        self.asked.append((word, peer))
        if self.is_away:
            raise UnavailableError("ask later", Reason.DATABASE_UNAVAILABLE)
        if word not in self.callers:
            raise unauthenticated()
        return self.callers[word]
