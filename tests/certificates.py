"""An authority of our own, and the PEM files that it gives to servers and clients of the tests."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


class Authority:
    """Signs certificates, and writes them into a directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.file = directory / f"{name}.pem"
        """Its own certificate."""
        self._authority.cert_pem.write_to_path(str(self.file))

    @property
    def pem(self) -> bytes:
        return self._authority.cert_pem.bytes()

    def issue(
        self, name: str, *identities: str, lifetime: timedelta = timedelta(days=90)
    ) -> tuple[Path, Path]:
        """A certificate and its key, `NAME.pem` and `NAME.key`; written over what was there.

        Each is exchanged as a whole, the key first: between the two they do not fit.
        """
        private, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        signer = load_pem_private_key(self._authority.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        issuer = x509.load_pem_x509_certificate(self.pem)
        key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + lifetime)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(one) for one in identities]),
                critical=True,
            )
            .add_extension(  # RFC 5280 asks for it, and Python 3.13 refuses a certificate without
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id),
                critical=False,
            )
            .sign(signer, SHA256())
        )
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for path, content in ((key, pem), (certificate, leaf.public_bytes(Encoding.PEM))):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content)
            os.replace(fresh, path)  # noqa: PTH105 - atomically, and said so
        return certificate, key


def _general_name(identity: str) -> x509.GeneralName:
    if "://" in identity:
        return x509.UniformResourceIdentifier(identity)
    if "@" in identity:
        return x509.RFC822Name(identity)
    with suppress(ValueError):
        return x509.IPAddress(ip_address(identity))
    return x509.DNSName(identity)
