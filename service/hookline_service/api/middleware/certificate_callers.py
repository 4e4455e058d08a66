"""Callers who are known by the certificate of their connection.

gRPC has verified it by then: without `HOOKLINE_TLS_CLIENT_CA` there is none. A call that brings
credentials of its own is known by these or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hookline_service.api.middleware.authentication import AuthContext, Metadata
from hookline_service.domain.caller import Caller
from hookline_service.identity.client_names import ClientNames, read_client_certificate

_CERTIFICATE: Final = "x509_pem_cert"
"""The peer's, whole: gRPC's own `peer_dns` and the like end at a NUL."""


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
        shown = tuple(auth_context.get(_CERTIFICATE, ()))
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
