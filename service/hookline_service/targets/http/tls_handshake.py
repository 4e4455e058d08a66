"""TLS as targets are spoken to, with a bound on what a target may send in its handshake.

Nearly all of a handshake is the target's certificates, and OpenSSL reads up to 100 KB of them (and
of the names in a request for ours). Crafted ones take fourteen times their bytes once they are
parsed, and are kept as long as the connection. OpenSSL parses a message when it is complete, so the
bytes are counted before it is given them.
"""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

HANDSHAKE_BYTES_MAX = 16_384
"""Ordinary chains have 3 to 8 KB."""


class HandshakeTooLargeError(ssl.SSLError):
    """The target sent more than `bytes_max` bytes in its handshake."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"more than {bytes_max} bytes")
        self.bytes_max = bytes_max


class TargetTls(ssl.SSLObject):
    """The client's side of one connection; counts what the peer sends in the handshake."""

    incoming: ssl.MemoryBIO
    handshake_bytes_max: int
    handshake_bytes: int = 0
    """What the peer has sent in the handshake and TLS has read."""

    def do_handshake(self) -> None:
        """Go on with the handshake; raises `HandshakeTooLargeError` before more is parsed."""
        received = self.incoming.pending
        if self.handshake_bytes + received > self.handshake_bytes_max:
            raise HandshakeTooLargeError(self.handshake_bytes_max)
        try:
            super().do_handshake()
        finally:
            self.handshake_bytes += received - self.incoming.pending


class TargetTlsContext(ssl.SSLContext):
    """A context whose connections bound the handshake."""

    sslobject_class = TargetTls
    handshake_bytes_max: int = HANDSHAKE_BYTES_MAX

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 - as of `SSLContext`
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """The TLS of one connection, between two buffers."""
        tls = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        assert isinstance(tls, TargetTls)  # noqa: S101 - as `sslobject_class` says
        tls.incoming = incoming
        tls.handshake_bytes_max = self.handshake_bytes_max
        return tls


def make_tls_context(
    extra_ca_file: Path | None = None, *, handshake_bytes_max: int = HANDSHAKE_BYTES_MAX
) -> TargetTlsContext:
    """TLS as every request uses it: always verified, HTTP/1.1 only.

    `extra_ca_file` adds authorities to the system's, for internal targets.
    """
    context = TargetTlsContext(ssl.PROTOCOL_TLS_CLIENT)  # requires a certificate for the host
    if sys.version_info >= (3, 13):  # as `ssl.create_default_context` does from there on
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    context.handshake_bytes_max = handshake_bytes_max
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    if extra_ca_file is not None:
        context.load_verify_locations(extra_ca_file)
    return context
