"""The certificate that this service shows its callers, its key, and who may sign theirs: PEM files.

What can be wrong with them is found here, at the start and at every change, and told in a sentence
with the setting's name: gRPC would refuse the same at the first handshake, without a word to
anybody. Must not know gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from hookline_service.identity.files import SourceError, read_file

CERT: Final = "HOOKLINE_TLS_CERT"
KEY: Final = "HOOKLINE_TLS_KEY"
CLIENT_CA: Final = "HOOKLINE_TLS_CLIENT_CA"

_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
_NAMES_SHOWN: Final = 4
_Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where the PEM files are."""

    certificate: Path
    """The server's certificate, and after it the intermediate ones."""
    key: Path
    """Its private key, without a passphrase."""
    client_ca: Path | None
    """Authorities, one of which must have signed a client's certificate; None: it shows none."""

    @property
    def paths(self) -> Sequence[Path]:
        """All of them."""
        return [path for path in (self.certificate, self.key, self.client_ca) if path is not None]


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """What the files hold, judged and ready to be served."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    client_ca_pem: bytes | None
    names: tuple[str, ...]
    """Names and addresses that it is good for."""
    expires_at: datetime

    @property
    def summary(self) -> str:
        """For whom it is."""
        more = len(self.names) - _NAMES_SHOWN
        names = ", ".join(self.names[:_NAMES_SHOWN]) or "no name"
        clients = ", clients show certificates" if self.client_ca_pem is not None else ""
        return f"certificate of {names}{f' and {more} more' if more > 0 else ''}{clients}"


def read_server_certificate(files: CertificateFiles) -> ServerCertificate:
    """Read and judge the files. Raises `SourceError` with the first thing that is wrong."""
    chain = _certificates(CERT, files.certificate)
    key = _private_key(files.key)
    _check_pair(chain, key, files)
    client_ca = None if files.client_ca is None else _certificates(CLIENT_CA, files.client_ca)
    return ServerCertificate(
        chain_pem=_pem(chain),
        key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        client_ca_pem=None if client_ca is None else _pem(client_ca),
        names=_names_of(chain[0]),
        expires_at=chain[0].not_valid_after_utc,
    )


def _certificates(setting: str, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(read_file(setting, path))
    except ValueError as error:
        raise SourceError(f"{setting} names {path}, which holds no certificate in PEM") from error


def _private_key(path: Path) -> _Key:
    try:
        key = load_pem_private_key(read_file(KEY, path), password=None)
    except TypeError as error:
        raise SourceError(
            f"{KEY} names {path}, whose key has a passphrase: nobody is there to type it, so store"
            " the key without, readable by the service alone"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SourceError(f"{KEY} names {path}, which holds no private key in PEM") from error
    is_fit = isinstance(key, rsa.RSAPrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES)
    )
    if not is_fit:
        raise SourceError(
            f"{KEY} names {path}, whose key is of a kind that gRPC cannot serve: it must be RSA, or"
            " ECDSA on P-256 or P-384"
        )
    assert isinstance(key, _Key)  # noqa: S101 - as is_fit says
    return key


def _check_pair(chain: Sequence[x509.Certificate], key: _Key, files: CertificateFiles) -> None:
    place = next((place for place, one in enumerate(chain) if _is_key_of(one, key)), None)
    if place is None:
        raise SourceError(
            f"{KEY} names {files.key}, which is not the key of the certificate in"
            f" {files.certificate}, which {CERT} names: they must be issued together"
        )
    if place:
        raise SourceError(
            f"{CERT} names {files.certificate}, in which the certificate of the key is number"
            f" {place + 1}: it must come first, the intermediate ones after it"
        )


def _is_key_of(certificate: x509.Certificate, key: _Key) -> bool:
    try:
        return certificate.public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm):  # a key of a kind that nobody knows
        return False


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    hosts = names.get_values_for_type(x509.DNSName)
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*hosts, *map(str, addresses))


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
