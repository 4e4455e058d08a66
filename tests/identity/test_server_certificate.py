"""The server's certificate files: what is good, and each way of being wrong with its sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from hookline_service.identity.files import SourceError
from hookline_service.identity.server_certificate import CertificateFiles, read_server_certificate
from tests.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def files(authority: Authority) -> CertificateFiles:
    certificate, key = authority.issue("server", "hookline.internal", "10.1.2.3")
    return CertificateFiles(certificate, key, authority.file)


def test_certificate_files_are_loaded(files: CertificateFiles, authority: Authority) -> None:
    read = read_server_certificate(files)
    assert read.names == ("hookline.internal", "10.1.2.3")
    assert read.client_ca_pem == authority.pem
    assert read.chain_pem.startswith(b"-----BEGIN CERTIFICATE-----")
    assert read.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert read.expires_at > datetime.now(UTC)
    assert read.summary == ("certificate of hookline.internal, 10.1.2.3, clients show certificates")


def test_private_key_of_the_server_is_never_shown(files: CertificateFiles) -> None:
    read = read_server_certificate(files)
    assert "PRIVATE" not in repr(read)
    assert "PRIVATE" not in read.summary


def test_all_authorities_of_a_bundle_are_loaded(files: CertificateFiles, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(Authority(tmp_path, "one").pem + b"# two\n" + Authority(tmp_path, "two").pem)
    read = read_server_certificate(CertificateFiles(files.certificate, files.key, bundle))
    assert (read.client_ca_pem or b"").count(b"BEGIN CERTIFICATE") == 2


def rewrite_key(files: CertificateFiles, passphrase: bytes) -> None:
    key = load_pem_private_key(files.key.read_bytes(), None)
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    files.key.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, encryption)
    )


def put_key(
    files: CertificateFiles, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
) -> None:
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def put_leaf_last(files: CertificateFiles) -> None:
    assert files.client_ca is not None
    leaf = files.certificate.read_bytes()
    files.certificate.write_bytes(files.client_ca.read_bytes() + leaf)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda f: f.certificate.unlink(), "HOOKLINE_TLS_CERT names .*: No such file"),
        (lambda f: f.certificate.write_bytes(b""), "HOOKLINE_TLS_CERT .* holds no certificate"),
        (
            lambda f: f.certificate.write_bytes(f.certificate.read_bytes()[:200]),
            "HOOKLINE_TLS_CERT .* holds no certificate",
        ),
        (lambda f: f.key.unlink(), "HOOKLINE_TLS_KEY names .*: No such file"),
        (lambda f: f.key.write_bytes(b"\xff\0"), "HOOKLINE_TLS_KEY .* holds no private key"),
        (lambda f: rewrite_key(f, b"secret"), "HOOKLINE_TLS_KEY .* has a passphrase"),
        (
            lambda f: put_key(f, ec.generate_private_key(ec.SECP256R1())),
            "HOOKLINE_TLS_KEY .* not the key of the certificate .* issued together",
        ),
        (
            lambda f: put_key(f, ed25519.Ed25519PrivateKey.generate()),
            "must be RSA, or ECDSA on P-256 or P-384",
        ),
        (
            lambda f: put_key(f, ec.generate_private_key(ec.SECP521R1())),
            "must be RSA, or ECDSA on P-256 or P-384",
        ),
        (put_leaf_last, "number 2: it must come first"),
        (lambda f: f.client_ca.write_bytes(b"?"), "HOOKLINE_TLS_CLIENT_CA .* holds no certificate"),
    ],
    ids=[
        "no-certificate",
        "empty-certificate",
        "half-a-certificate",
        "no-key",
        "garbage-key",
        "passphrase",
        "another-key",
        "ed25519",
        "p521",
        "order",
        "garbage-ca",
    ],
)
def test_unusable_certificate_files_are_reported(
    files: CertificateFiles, break_it: Callable[[CertificateFiles], object], message: str
) -> None:
    break_it(files)
    with pytest.raises(SourceError) as caught:
        read_server_certificate(files)
    assert re.search(message, str(caught.value)), caught.value
    assert "secret" not in str(caught.value)


def test_key_in_the_traditional_format_is_accepted(files: CertificateFiles) -> None:
    rewrite_key(files, b"")
    assert b"BEGIN EC PRIVATE KEY" in files.key.read_bytes()
    assert read_server_certificate(files).key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")
