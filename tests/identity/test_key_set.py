"""JWK Sets: which keys count for which algorithms, and which sets do not count at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from hookline_service.identity.files import SourceError
from hookline_service.identity.key_set import ALGORITHMS, MAX_KEYS, parse_key_set
from tests.identity.issuer import Issuer


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


def key_set(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def named(*keys: object) -> set[tuple[str, str]]:
    """The ids and algorithms that count of these keys."""
    return set(parse_key_set(key_set(*keys), "keys.json").keys)


def test_key_is_valid_for_the_algorithms_of_its_type(issuer: Issuer) -> None:
    assert named(*(issuer.jwk(key_id) for key_id in issuer.keys)) == {
        ("RS256", "RS256"), ("RS256", "PS256"), ("PS256", "RS256"), ("PS256", "PS256"),
        ("ES256", "ES256"), ("EdDSA", "EdDSA"),
    }  # fmt: skip


def test_key_can_restrict_its_algorithm(issuer: Issuer) -> None:
    assert named(issuer.jwk("RS256", alg="PS256")) == {("RS256", "PS256")}


def test_first_key_of_an_id_is_used_and_keys_without_id_are_numbered(issuer: Issuer) -> None:
    nameless = issuer.jwk("EdDSA")
    del nameless["kid"]
    read = parse_key_set(key_set(issuer.jwk("ES256"), nameless, issuer.jwk("ES256")), "keys.json")
    assert set(read.keys) == {("ES256", "ES256"), ("#1", "EdDSA")}
    assert read.summary == "2 keys from keys.json"


def jwk_of(algorithm: Any, key: Any) -> dict[str, Any]:  # noqa: ANN401 - PyJWT's, each of its own
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": "x"}


def test_key_without_an_allowed_algorithm_is_skipped(issuer: Issuer) -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - so as to be refused
    others: tuple[object, ...] = (
        {"kty": "oct", "k": "c2VjcmV0", "kid": "x"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "x", "alg": "HS256"},
        jwk_of(RSAAlgorithm(RSAAlgorithm.SHA256), weak),
        jwk_of(ECAlgorithm(ECAlgorithm.SHA384), ec.generate_private_key(ec.SECP384R1())),
        jwk_of(OKPAlgorithm(), ed448.Ed448PrivateKey.generate()),
        issuer.jwk("RS256", use="enc"),
        issuer.jwk("RS256", alg="RS512"),
        issuer.jwk("RS256", alg="none"),
        issuer.jwk("RS256", kid=7),
        issuer.jwk("RS256", n="?"),
        issuer.jwk("ES256", crv="P-257"),
        {"kty": "RSA"},
        {"kty": ["RSA"], "kid": "x"},
        {},
        "key",
        None,
    )
    assert named(*others, issuer.jwk("ES256")) == {("ES256", "ES256")}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is no JWK Set"),
        (b"\xff", "is no JWK Set"),
        (b"[]", "is no JWK Set"),
        (b'{"keys": {}}', "is no JWK Set"),
        (b"[" * 100_000, "is no JWK Set"),
        (b'{"keys": []}', f"holds no key that can verify {', '.join(ALGORITHMS)}"),
        (key_set(*[{}] * (MAX_KEYS + 1)), "holds more than 100 keys"),
        (key_set({"kty": "EC", "d": "x"}), "holds a private key"),
    ],
    ids=["empty", "bytes", "list", "map", "deep", "none", "many", "private"],
)
def test_invalid_key_set_is_reported(content: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        parse_key_set(content, "keys.json")
    assert str(caught.value).startswith("HOOKLINE_JWT_KEYS: keys.json ")
