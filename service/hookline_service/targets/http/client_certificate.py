"""Client certificates: what a target may be shown of who sends, and TLS with one of them.

Theory. Python's TLS reads a certificate and its key from files only. They are given to it in memory
that looks like a file (memfd) where there is such a thing, else in a file of our own that is
removed at once. A TLS context costs milliseconds and the memory of all authorities, so a bounded
number of them is kept; connections hold on to theirs.

No error here carries any part of a key.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
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
from hookline_service.targets.http.tls_handshake import TargetTlsContext

MAX_CHAIN_BYTES = 32 * 1024
MAX_KEY_BYTES = 16 * 1024
MAX_CHAIN_CERTIFICATES = 10
RSA_BITS = range(2_048, 8_193)
_SUBJECT_LENGTH_MAX = 512
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

MakeTls = Callable[[], TargetTlsContext]
"""A new TLS context, as every request uses it but for the certificate."""


class InvalidCertificateError(ValueError):
    """A certificate that cannot be shown; `is_of_key`: it is its key that is wrong."""

    def __init__(self, text: str, *, is_of_key: bool = False) -> None:
        super().__init__(text)
        self.is_of_key = is_of_key


class ClientIdentity:
    """A certificate chain and its key, ready to be shown; equal to another of the same bytes."""

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
    """What may be told of a certificate; raises `InvalidCertificateError` where it cannot be used.

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
    """TLS contexts by the certificate that they show; none is shown by the common one."""

    def __init__(self, make: MakeTls, *, kept_max: int = 64) -> None:
        """`kept_max`: contexts that are kept beside the common one, about 1 MB each."""
        self._make = make
        self._kept_max = kept_max
        self._common = make()
        self._kept: OrderedDict[ClientIdentity, TargetTlsContext] = OrderedDict()
        self._making = asyncio.Lock()

    @property
    def kept_count(self) -> int:
        """Contexts with certificates that are kept."""
        return len(self._kept)

    async def of(self, identity: ClientIdentity | None) -> TargetTlsContext:
        """The context that shows a certificate; raises ssl.SSLError where it cannot be shown."""
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
    """Let a context show a certificate; raises ssl.SSLError where OpenSSL does not take it."""
    with _as_file(f"{identity.chain}\n{identity.private_key}\n".encode("ascii")) as path:
        # A password is never asked for at the terminal of the service.
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
