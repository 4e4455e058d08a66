"""Callers who are known by the certificate of their connection.

gRPC has verified it by then: without `HOOKLINE_TLS_CLIENT_CA` there is none. A call that brings
credentials of its own is known by these or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from service.api.authentication import AuthContext, Metadata
from service.domain.caller import Caller
from service.identity.client_names import KINDS, ClientName, ClientNames

_PROPERTIES: Final = tuple((kind, f"peer_{kind}") for kind in KINDS)
"""What gRPC calls each kind of subject alternative name (`grpc_security_constants.h`)."""


class CertificateCallers:
    """Knows callers by the names in their certificates."""

    def __init__(self, current: Callable[[], ClientNames]) -> None:
        """`current` answers the names that count at present."""
        self._current = current

    async def authenticate(
        self, metadata: Metadata, auth_context: AuthContext, peer: str
    ) -> Caller | None:
        """Whose certificate it is; None: there is none, or nobody's."""
        del peer
        if any(key == "authorization" for key, _ in metadata):
            return None
        found = self._current().find(_names_in(auth_context))
        if found is None:
            return None
        (kind, name), grant = found
        return Caller(principal=f"{kind}:{name}", scopes=grant.scopes, tenant_id=grant.tenant_id)


def _names_in(auth_context: AuthContext) -> Iterator[ClientName]:
    for kind, key in _PROPERTIES:
        for name in auth_context.get(key, ()):
            with suppress(UnicodeDecodeError):  # no name that could be listed
                yield kind, name.decode()
