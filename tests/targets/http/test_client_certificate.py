"""Client certificates: validation, use in TLS, and separate connections."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.tls import (
    ClientIdentity,
    InvalidCertificateError,
    TargetTlsContext,
    TlsContexts,
    load_identity,
    make_tls_context,
    read_client_certificate,
)
from tests.targets.http.conftest import MakePost, Post, server_tls
from tests.targets.http.receiver import OK, Connected, Receiver, answering

NOW = datetime(2026, 11, 24, tzinfo=UTC)
YEAR = timedelta(days=365)


def pem_of(key: CertificateIssuerPrivateKeyTypes, password: bytes | None = None) -> str:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    ).decode()


def certificate_of(
    key: CertificateIssuerPrivateKeyTypes, ends: datetime = NOW + YEAR, name: str = "hookline"
) -> str:
    """Return a self-signed certificate."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - YEAR)
        .not_valid_after(ends)
        .sign(key, digest)
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def identity_of(authority: trustme.CA, name: str) -> ClientIdentity:
    leaf = authority.issue_cert(name)
    chain = "".join(part.bytes().decode() for part in leaf.cert_chain_pems)
    return ClientIdentity(chain, leaf.private_key_pem.bytes().decode())


EC_KEY = ec.generate_private_key(ec.SECP256R1())
CHAIN, KEY = certificate_of(EC_KEY), pem_of(EC_KEY)

KEYS: dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]] = {
    "RSA": lambda: rsa.generate_private_key(65_537, 2_048),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", KEYS)
def test_description_of_a_certificate_has_its_public_fields(kind: str) -> None:
    key = KEYS[kind]()
    certificate = certificate_of(key)
    facts = read_client_certificate(ClientIdentity(certificate, pem_of(key)), NOW)
    assert (facts.subject, facts.expire_time) == ("CN=hookline", NOW + YEAR)
    der = ssl.PEM_cert_to_DER_cert(certificate)
    assert facts.fingerprint == hashlib.sha256(der).hexdigest()


WEAK_KEY = rsa.generate_private_key(65_537, 1_024)  # noqa: S505 - to be refused

BAD: dict[str, tuple[str, str, str]] = {
    "nonsense": ("nonsense", KEY, "not a chain of certificates"),
    "a private one": (KEY, KEY, "not a chain of certificates"),
    "not ASCII": ("☂" + CHAIN, KEY, "not a chain of certificates"),
    "cut": (CHAIN[:200], KEY, "not a chain of certificates"),
    "NUL": ("\0", KEY, "not a chain of certificates"),
    "too long": (CHAIN * 200, KEY, "longer than"),
    "too many": (CHAIN * 11, KEY, "more than 10"),
    "ended": (certificate_of(EC_KEY, ends=NOW), KEY, "ended at 2026-11-24T00:00:00Z"),
    "no key": (CHAIN, "nonsense", "not a private key"),
    "a public key": (CHAIN, CHAIN, "not a private key"),
    "key too long": (CHAIN, KEY + "\n" * 17_000, "longer than"),
    "encrypted key": (CHAIN, pem_of(EC_KEY, b"password"), "must not be encrypted"),
    "another's key": (CHAIN, pem_of(KEYS["P-256"]()), "does not belong"),
    "a weak key": (CHAIN, pem_of(WEAK_KEY), "must be RSA of"),
    "a key on an odd curve": (
        CHAIN,
        pem_of(ec.generate_private_key(ec.SECP256K1())),
        "must be RSA of",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_unusable_certificate_is_rejected_without_quoting_it(kind: str) -> None:
    chain, key, reason = BAD[kind]
    with pytest.raises(InvalidCertificateError, match=reason) as caught:
        read_client_certificate(ClientIdentity(chain, key), NOW)
    assert caught.value.is_of_key is ("key" in kind)
    assert KEY.splitlines()[1] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_repr_of_an_identity_contains_no_key() -> None:
    identity = ClientIdentity(CHAIN, KEY)
    assert repr(identity) == f"{identity}" == "ClientIdentity()"
    assert identity == ClientIdentity(CHAIN, KEY)
    assert hash(identity) == hash(ClientIdentity(CHAIN, KEY))
    assert identity != ClientIdentity(CHAIN, KEY + "\n")


def test_no_file_with_the_private_key_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both with a memory file and on systems without memory files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count of descriptors
    load_identity(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ClientIdentity(CHAIN, KEY))
    monkeypatch.delattr(os, "memfd_create")
    load_identity(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ClientIdentity(CHAIN, KEY))
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def test_number_of_cached_tls_contexts_is_bounded(authority: trustme.CA) -> None:
    made: list[TargetTlsContext] = []

    def make() -> TargetTlsContext:
        made.append(TargetTlsContext(ssl.PROTOCOL_TLS_CLIENT))
        return made[-1]

    contexts = TlsContexts(make, kept_max=2)
    first, *others = [identity_of(authority, f"{name}.test") for name in "abc"]
    found = await asyncio.gather(*[contexts.of(first) for _ in range(5)])
    assert len(set(map(id, found))) == 1
    assert len(made) == 2
    assert await contexts.of(None) is made[0]
    for identity in others:
        assert await contexts.of(identity) is made[-1]
    assert contexts.kept_count == 2
    assert await contexts.of(first) is made[-1]


# ------------------------------------------------------------------------------------ on the wire


@pytest.fixture
def mutual(make_post: MakePost, authority_file: Path) -> Post:
    return make_post(make_tls=partial(make_tls_context, authority_file))


def asking_tls(authority: trustme.CA) -> ssl.SSLContext:
    """Return a server context that rejects clients without a certificate of the authority."""
    context = server_tls(authority.issue_cert("127.0.0.1"))
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    return context


class Names:
    """A script that answers OK and records the name in each client's certificate."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, connected: Connected) -> None:
        certificate = connected.writer.get_extra_info("ssl_object").getpeercert()
        self.seen += [value for kind, value in certificate["subjectAltName"] if kind == "DNS"]
        await answering(OK)(connected)


async def test_server_that_requests_a_certificate_receives_it(
    mutual: Post, authority: trustme.CA
) -> None:
    names = Names()
    async with Receiver(names, tls=asking_tls(authority)) as receiver:
        identity = identity_of(authority, "acme.test")
        for _ in range(2):
            outcome = await mutual(receiver.url(), identity=identity)
            assert outcome.kind is AttemptOutcome.ACCEPTED
    assert names.seen == ["acme.test"]


async def test_tenants_with_different_certificates_share_no_connection(
    mutual: Post, authority: trustme.CA
) -> None:
    """A server may authorize requests by the certificate of the connection."""
    names = Names()
    identities = {name: identity_of(authority, name) for name in ("acme.test", "other.test")}
    async with Receiver(names, tls=asking_tls(authority)) as receiver:
        for name in ("acme.test", "other.test", "acme.test"):
            outcome = await mutual(receiver.url(), identity=identities[name])
            assert outcome.kind is AttemptOutcome.ACCEPTED
        refused = await mutual(receiver.url())
    assert refused.kind is not AttemptOutcome.ACCEPTED
    assert names.seen == ["acme.test", "other.test"]


async def test_client_certificate_of_another_authority_fails_as_tls_failed(
    mutual: Post, authority: trustme.CA
) -> None:
    async with Receiver(answering(OK), tls=asking_tls(authority)) as receiver:
        outcome = await mutual(receiver.url(), identity=identity_of(trustme.CA(), "acme.test"))
    assert outcome.kind in {AttemptOutcome.TLS_FAILED, AttemptOutcome.CONNECTION_FAILED}


async def test_client_certificate_that_cannot_be_loaded_is_an_outcome(mutual: Post) -> None:
    outcome = await mutual(
        "https://127.0.0.1:1024/", identity=ClientIdentity("nonsense", "nonsense")
    )
    assert outcome.kind is AttemptOutcome.TLS_FAILED
    assert outcome.error == "the client certificate cannot be used"


async def test_lack_of_a_descriptor_for_a_certificate_is_an_internal_error(
    mutual: Post, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_is_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "memfd_create", none_is_left)
    identity = identity_of(authority, "acme.test")
    outcome = await mutual("https://127.0.0.1:1024/", identity=identity)
    assert outcome.kind is AttemptOutcome.INTERNAL_ERROR
    assert outcome.error == "the client certificate could not be made ready"


async def test_plaintext_request_has_no_certificate(mutual: Post, authority: trustme.CA) -> None:
    async with Receiver(answering(OK)) as receiver:
        outcome = await mutual(receiver.url(), identity=identity_of(authority, "acme.test"))
    assert outcome.kind is AttemptOutcome.ACCEPTED


async def test_secret_headers_are_sent_with_the_other_headers(mutual: Post) -> None:
    async with Receiver(answering(OK)) as receiver:
        await mutual(receiver.url(), headers={"x-a": "1"}, secret_headers={"authorization": "B x"})
        request = receiver.requests[-1]
    assert request.headers["authorization"] == "B x"
    assert request.headers["x-a"] == "1"
