"""TLS of the gRPC server: certificates that may be exchanged while it serves.

gRPC asks for the certificate before each handshake, on a thread of its core: the answer must be at
hand. Somebody else follows the files; here is only noticed that what counts is another. Connections
that are open keep what they began with. TLS 1.2 is the least that gRPC's core speaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from hookline_service.identity.server_certificate import ServerCertificate


def server_credentials(current: Callable[[], ServerCertificate]) -> grpc.ServerCredentials:
    """Credentials that follow `current`, which is called before each handshake, on any thread.

    Whether clients must show certificates is decided by what it answers now.
    """
    served = current()
    requires_client = served.client_ca_pem is not None

    def fetch() -> Any:  # noqa: ANN401 - grpcio's stubs do not know of None
        nonlocal served
        certificate = current()
        if certificate is served:
            return None  # the core keeps what it has
        served = certificate
        return _configuration(certificate)

    return grpc.dynamic_ssl_server_credentials(_configuration(served), fetch, requires_client)


def _configuration(certificate: ServerCertificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificate.key_pem, certificate.chain_pem)], certificate.client_ca_pem
    )
