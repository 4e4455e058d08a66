"""TLS to targets: the bound on handshakes, and client certificates.

Handshakes. Nearly all of a handshake's bytes are the target's certificates, and OpenSSL reads up to
100 KB of them (and of the names in a certificate request). Crafted certificates take fourteen times
their bytes once they are parsed, and are kept as long as the connection. OpenSSL parses a message
once it is complete, so the bytes are counted before OpenSSL receives them.

Client certificates. Python's TLS reads a certificate and its key from files only. They are passed
in a memory file (memfd) where the platform has one, otherwise in a temporary file that is removed
at once. A TLS context costs milliseconds and the memory of all authorities, so a bounded number of
contexts is kept; each connection keeps a reference to its own.

No error of this file contains any part of a key.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from hookline_service.domain.subscription import ClientCertificate

HANDSHAKE_BYTES_MAX = 16_384
"""Ordinary chains have 3 to 8 KB."""


class HandshakeTooLargeError(ssl.SSLError):
    """The target sent more than `bytes_max` bytes in its handshake."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"more than {bytes_max} bytes")
        self.bytes_max = bytes_max


class TargetTls(ssl.SSLObject):
    """The client side of one connection; counts the bytes that the peer sends in the handshake."""

    incoming: ssl.MemoryBIO
    handshake_bytes_max: int
    handshake_bytes: int = 0
    """Bytes of the handshake that OpenSSL has read."""

    def do_handshake(self) -> None:
        """Continue the handshake; raise `HandshakeTooLargeError` before more bytes are parsed."""
        received = self.incoming.pending
        if self.handshake_bytes + received > self.handshake_bytes_max:
            raise HandshakeTooLargeError(self.handshake_bytes_max)
        try:
            super().do_handshake()
        finally:
            self.handshake_bytes += received - self.incoming.pending


class TargetTlsContext(ssl.SSLContext):
    """A TLS context whose connections bound the handshake."""

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
        """Return the TLS state of one connection."""
        tls = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        assert isinstance(tls, TargetTls)  # noqa: S101 - as `sslobject_class` says
        tls.incoming = incoming
        tls.handshake_bytes_max = self.handshake_bytes_max
        return tls


def make_tls_context(
    extra_ca_file: Path | None = None, *, handshake_bytes_max: int = HANDSHAKE_BYTES_MAX
) -> TargetTlsContext:
    """Make the TLS context of requests: always verified, HTTP/1.1 only.

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


MAX_CHAIN_BYTES = 32 * 1024
MAX_KEY_BYTES = 16 * 1024
MAX_CHAIN_CERTIFICATES = 10
RSA_BITS = range(2_048, 8_193)
_SUBJECT_LENGTH_MAX = 512
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

MakeTls = Callable[[], TargetTlsContext]
"""Make a TLS context without a client certificate."""


class InvalidCertificateError(ValueError):
    """An unusable client certificate; `is_of_key`: the problem is its key."""

    def __init__(self, text: str, *, is_of_key: bool = False) -> None:
        super().__init__(text)
        self.is_of_key = is_of_key


class ClientIdentity:
    """A client certificate chain and its key; equal to another of the same bytes."""

    __slots__ = ("_digest", "chain", "private_key")

    def __init__(self, chain: str, private_key: str) -> None:
        self.chain = chain
        self.private_key = private_key
        self._digest = hashlib.sha256(f"{chain}\0{private_key}".encode()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClientIdentity) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return "ClientIdentity()"


def read_client_certificate(identity: ClientIdentity, now: datetime) -> ClientCertificate:
    """Return the public facts of a certificate; raise `InvalidCertificateError` if unusable.

    The chain is PEM, the certificate itself first; the key is unencrypted PEM.
    """
    leaf = _leaf_of(identity.chain)
    _check_key(leaf, identity.private_key)
    if leaf.not_valid_after_utc <= now:
        raise InvalidCertificateError(f"ended at {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
    try:
        load_identity(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), identity)
    except (ssl.SSLError, OSError, ValueError):
        raise InvalidCertificateError("is not accepted by this service's TLS") from None
    return ClientCertificate(
        subject=leaf.subject.rfc4514_string()[:_SUBJECT_LENGTH_MAX],
        expire_time=leaf.not_valid_after_utc,
        fingerprint=leaf.fingerprint(hashes.SHA256()).hex(),
    )


def _leaf_of(chain: str) -> x509.Certificate:
    if len(chain) > MAX_CHAIN_BYTES:
        raise InvalidCertificateError(f"is longer than {MAX_CHAIN_BYTES:,} bytes")
    try:
        certificates = x509.load_pem_x509_certificates(chain.encode("ascii"))
        leaf = certificates[0]
        leaf.public_key()
        leaf.subject.rfc4514_string()
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidCertificateError("is not a chain of certificates in PEM") from None
    if len(certificates) > MAX_CHAIN_CERTIFICATES:
        raise InvalidCertificateError(f"has more than {MAX_CHAIN_CERTIFICATES} certificates")
    return leaf


def _check_key(leaf: x509.Certificate, private_key: str) -> None:
    if len(private_key) > MAX_KEY_BYTES:
        raise InvalidCertificateError(f"is longer than {MAX_KEY_BYTES:,} bytes", is_of_key=True)
    try:
        key = serialization.load_pem_private_key(private_key.encode("ascii"), password=None)
    except TypeError:
        raise InvalidCertificateError("must not be encrypted", is_of_key=True) from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidCertificateError("is not a private key in PEM", is_of_key=True) from None
    match key:
        case rsa.RSAPrivateKey():
            is_good = key.key_size in RSA_BITS
        case ec.EllipticCurvePrivateKey():
            is_good = isinstance(key.curve, _CURVES)
        case _:
            is_good = isinstance(key, ed25519.Ed25519PrivateKey)
    if not is_good:
        text = "must be RSA of 2,048 to 8,192 bits, ECDSA on P-256, P-384 or P-521, or ed25519"
        raise InvalidCertificateError(text, is_of_key=True)
    if key.public_key() != leaf.public_key():
        raise InvalidCertificateError("does not belong to the certificate", is_of_key=True)


class TlsContexts:
    """TLS contexts by client certificate; the common one has none."""

    def __init__(self, make: MakeTls, *, kept_max: int = 64) -> None:
        """`kept_max` is the number of contexts kept beside the common one, about 1 MB each."""
        self._make = make
        self._kept_max = kept_max
        self._common = make()
        self._kept: OrderedDict[ClientIdentity, TargetTlsContext] = OrderedDict()
        self._making = asyncio.Lock()

    @property
    def kept_count(self) -> int:
        """Kept contexts with a client certificate."""
        return len(self._kept)

    async def of(self, identity: ClientIdentity | None) -> TargetTlsContext:
        """Return the context for a client certificate; raise ssl.SSLError if it is unusable."""
        if identity is None:
            return self._common
        async with self._making:
            context = self._kept.get(identity)
            if context is None:
                context = await asyncio.to_thread(self._make_with, identity)
                self._kept[identity] = context
                if len(self._kept) > self._kept_max:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(identity)
            return context

    def _make_with(self, identity: ClientIdentity) -> TargetTlsContext:
        context = self._make()
        load_identity(context, identity)
        return context


def load_identity(context: ssl.SSLContext, identity: ClientIdentity) -> None:
    """Load a client certificate into a context; raise ssl.SSLError if OpenSSL rejects it."""
    with _as_file(f"{identity.chain}\n{identity.private_key}\n".encode("ascii")) as path:
        # An empty password, so that OpenSSL never prompts at the service's terminal.
        context.load_cert_chain(path, password=b"")


@contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            yield Path(f"/proc/self/fd/{descriptor}")
        return
    with tempfile.NamedTemporaryFile() as file:  # 0600, as mkstemp makes it
        file.write(content)
        file.flush()
        yield Path(file.name)
