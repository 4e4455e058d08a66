"""Who calls: each call's credentials are shown to the sources of identity, one after the other.

A source knows one kind of credentials (API keys, client certificates, tokens of an issuer). It
answers a `Caller`; or None, where the call shows nothing of its kind, and the next one is asked; or
it raises, and then nobody else is asked: who shows a bad key is not let in for another reason.
The same question is asked again while a stream lasts, so a source keeps what it knows at hand.

Must not know what a caller may do (`scopes.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

from hookline_service.domain.caller import Caller, Scope
from hookline_service.domain.errors import unauthenticated

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
"""What a call brought along, keys in lower case."""
AuthContext: TypeAlias = Mapping[str, Iterable[bytes]]
"""What gRPC knows of the connection: of TLS, the peer's certificate (`x509_pem_cert`)."""

_BEARER: Final = "bearer"


class IdentitySource(Protocol):
    """A source of identity."""

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        """Who calls, without `method` and `remote_address`; None: nothing of its kind was shown.

        Raises `unauthenticated()` where what was shown is no good, and `UnavailableError` where
        that cannot be told at present.
        """
        ...


class Anonymous:
    """Knows everybody, as one who may do anything: where authentication is off."""

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        """Nobody in particular."""
        del metadata, auth_context, peer
        return ANONYMOUS


ANONYMOUS: Final = Caller(principal="anonymous", scopes=frozenset(Scope))


class Identities:
    """All sources of a node, in the order in which they are asked."""

    def __init__(self, sources: Sequence[IdentitySource]) -> None:
        self._sources = tuple(sources)

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller:
        """Who calls; raises `unauthenticated()` where no source knows."""
        for source in self._sources:
            caller = await source.authenticate(metadata, auth_context, peer)
            if caller is not None:
                return caller
        raise unauthenticated()


def bearer_token_in(metadata: Metadata) -> str | None:
    """What `authorization: Bearer …` holds (RFC 6750 section 2.1); None: there is none.

    Raises `unauthenticated()` where there are several: nobody should have to guess which counts.
    """
    found: str | bytes | None = None
    for key, value in metadata:
        if key == "authorization":
            if found is not None:
                raise unauthenticated()
            found = value
    if not isinstance(found, str):
        return None
    scheme, _, token = found.partition(" ")
    return token.strip() or None if scheme.lower() == _BEARER else None
