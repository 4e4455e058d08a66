"""Authentication: a call's credentials are shown to the sources of identity, one after the other.

A source takes one kind of credentials: API keys (`api_key_source.py`), tokens of an OIDC issuer,
client certificates. It returns a `Caller`; or None where the call carries none of its kind, and the
next source is asked; or it raises, and no other source is asked: a call with an invalid key is not
authenticated by other credentials. Streams are authenticated again while they last, so a source
caches its results.

Authorization is separate (`scopes.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

from hookline_service.domain.api_key import TOKEN_PREFIX
from hookline_service.domain.caller import Caller, Scope
from hookline_service.domain.errors import unauthenticated
from hookline_service.identity.client_names import ClientNames, read_client_certificate
from hookline_service.identity.tokens import Tokens

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
"""The metadata of a call, keys in lower case."""
AuthContext: TypeAlias = Callable[[], Mapping[str, Iterable[bytes]]]
"""Returns what gRPC records of the connection: with TLS, the peer's certificate."""

_BEARER: Final = "bearer"
_CERTIFICATE: Final = "x509_pem_cert"
"""The peer's whole certificate: gRPC's own `peer_dns` and the like end at a NUL."""


class IdentitySource(Protocol):
    """A source of identity."""

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        """Return the caller; None where the call carries no credentials of this kind.

        Raise `unauthenticated()` where the credentials are invalid, and `UnavailableError` where
        they cannot be checked at present.
        """
        ...


class Anonymous:
    """Authenticates every call as one that may do anything: where authentication is off."""

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        """Return the anonymous caller."""
        del metadata, auth_context, peer
        return ANONYMOUS


ANONYMOUS: Final = Caller(principal="anonymous", scopes=frozenset(Scope))


class TokenSource:
    """Authenticates calls by a token of an OIDC issuer, in `authorization: Bearer …`."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        """Return the token's caller; None where there is no token, or an API key."""
        del auth_context, peer
        token = bearer_token_in(metadata)
        if token is None or token.startswith(TOKEN_PREFIX):
            return None
        return await self._tokens.caller_of(token)


class CertificateSource:
    """Authenticates calls by the client certificate of their connection.

    gRPC has verified it: without `HOOKLINE_TLS_CLIENT_CA` there is none. A call with credentials
    of its own is authenticated by these or not at all.
    """

    def __init__(self, current: Callable[[], ClientNames]) -> None:
        """`current` returns the names that are configured at present."""
        self._current = current

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        """Return the certificate's caller; None where its names are not configured."""
        del peer
        if any(key == "authorization" for key, _ in metadata):
            return None
        shown = tuple(auth_context().get(_CERTIFICATE, ()))
        if len(shown) != 1 or (certificate := read_client_certificate(shown[0])) is None:
            return None
        found = self._current().find(certificate.names)
        if found is None:
            return None
        (kind, name), grant = found
        return Caller(
            principal=f"{kind}:{name}",
            scopes=grant.scopes,
            tenant_id=grant.tenant_id,
            expire_time=certificate.expire_time,
        )


class Identities:
    """All sources of a node, in the order in which they are asked."""

    def __init__(self, sources: Sequence[IdentitySource]) -> None:
        self._sources = tuple(sources)

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller:
        """Return the caller. Raise `unauthenticated()` where every source returns None."""
        for source in self._sources:
            caller = await source.authenticate(metadata, auth_context, peer)
            if caller is not None:
                return caller
        raise unauthenticated()


def bearer_token_in(metadata: Metadata) -> str | None:
    """Return the token in `authorization: Bearer …` (RFC 6750 section 2.1), if there is one.

    Raise `unauthenticated()` where there are several: which of them counts would be ambiguous.
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
