"""TLS of the gRPC server, with certificates that are replaced while it serves.

gRPC calls for the certificate before each handshake, on a thread of its core, so that it must be in
memory: `app/source_watchers.py` reads the files. Open connections keep the certificate they began
with. The oldest version that gRPC's core accepts is TLS 1.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from hookline_service.identity.server_certificate import ServerCertificate


def server_credentials(current: Callable[[], ServerCertificate]) -> grpc.ServerCredentials:
    """Return credentials that use the result of `current`, called on any thread per handshake.

    Whether clients must present certificates is decided now, by what `current` returns.
    """
    served = current()
    requires_client = served.client_ca_pem is not None

    def fetch() -> Any:  # noqa: ANN401 - grpcio's stubs lack None
        nonlocal served
        certificate = current()
        if certificate is served:
            return None  # the core keeps the current one
        served = certificate
        return _configuration(certificate)

    return grpc.dynamic_ssl_server_credentials(_configuration(served), fetch, requires_client)


def _configuration(certificate: ServerCertificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificate.key_pem, certificate.chain_pem)], certificate.client_ca_pem
    )
