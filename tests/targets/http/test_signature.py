"""Signatures: the vectors of the standard, and the secrets that can be imported."""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from hookline_service.domain.subscription import SignatureScheme
from hookline_service.targets.http.signature import (
    InvalidSecretError,
    Signer,
    generate_secret,
    parse_secret,
)

ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP_S = 1_614_265_330
BODY = b'{"test": 2432232314}'
HMAC_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
HMAC_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
ED25519_SECRET = (
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
)
ED25519_PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
ED25519_SIGNATURE = (
    "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
)


def whsec(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def whsk(key: bytes) -> str:
    return "whsk_" + base64.b64encode(key).decode()


@pytest.mark.parametrize(
    "secret, signature",
    [(HMAC_SECRET, HMAC_SIGNATURE), (ED25519_SECRET, ED25519_SIGNATURE)],
    ids=["v1", "v1a"],
)
def test_signatures_equal_the_vectors_of_the_standard(secret: str, signature: str) -> None:
    assert Signer([parse_secret(secret)]).sign(ID, TIMESTAMP_S, BODY) == signature


def test_header_has_a_signature_of_every_live_secret() -> None:
    signer = Signer([parse_secret(HMAC_SECRET), parse_secret(ED25519_SECRET)])
    assert signer.sign(ID, TIMESTAMP_S, BODY) == f"{HMAC_SIGNATURE} {ED25519_SIGNATURE}"


def test_signer_needs_a_secret() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Signer([])


@given(body=st.text(), key=st.binary(min_size=24, max_size=64), second=st.integers(0, 2**32))
def test_reference_library_verifies_the_signature(body: str, key: bytes, second: int) -> None:
    signed_at = datetime.fromtimestamp(second, tz=UTC)
    expected = Webhook(whsec(key)).sign(ID, signed_at, body)
    assert Signer([parse_secret(whsec(key))]).sign(ID, second, body.encode()) == expected


@pytest.mark.parametrize("scheme", SignatureScheme)
def test_generated_secret_has_32_random_bytes_and_can_be_imported(scheme: SignatureScheme) -> None:
    secret = generate_secret(scheme)
    assert len(secret.key) == 32
    assert secret.key != generate_secret(scheme).key
    assert parse_secret(secret.text) == secret


def test_randomness_can_be_injected() -> None:
    secret = generate_secret(SignatureScheme.HMAC_SHA256, lambda count: b"\x01" * count)
    assert secret.text == whsec(b"\x01" * 32)


def test_public_key_verifies_and_contains_no_secret() -> None:
    secret = parse_secret(ED25519_SECRET)
    assert secret.public_key == ED25519_PUBLIC
    assert secret.text == ED25519_SECRET
    assert parse_secret(HMAC_SECRET).public_key == ""
    public = Ed25519PublicKey.from_public_bytes(
        base64.b64decode(ED25519_PUBLIC.removeprefix("whpk_"))
    )
    signature = Signer([secret]).sign(ID, TIMESTAMP_S, BODY).removeprefix("v1a,")
    public.verify(base64.b64decode(signature), f"{ID}.{TIMESTAMP_S}.".encode() + BODY)
    with pytest.raises(InvalidSignature):
        public.verify(base64.b64decode(signature), b"something else")


def test_seed_without_its_public_half_is_the_same_key() -> None:
    whole = parse_secret(ED25519_SECRET)
    assert parse_secret(whsk(whole.key)) == whole


@pytest.mark.parametrize("size", [24, 32, 64])
def test_hmac_secret_of_an_allowed_size_is_accepted(size: int) -> None:
    key = os.urandom(size)
    assert parse_secret(whsec(key)).key == key


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "must begin with"),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "must begin with"),
        ("WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "must begin with"),
        (ED25519_PUBLIC, "is a public key"),
        ("whsec_", "24 to 64 bytes, not 0"),
        (whsec(b"x" * 23), "24 to 64 bytes, not 23"),
        (whsec(b"x" * 65), "24 to 64 bytes, not 65"),
        ("whsec_not base64!", "standard base64"),
        ("whsec_" + "é" * 32, "standard base64"),
        (HMAC_SECRET + "\n", "standard base64"),
        (HMAC_SECRET[:-1], "standard base64"),
        ("whsec_" + "-_" * 16, "standard base64"),
        (whsk(b"x" * 31), "seed of 32 bytes"),
        (whsk(b"x" * 63), "seed of 32 bytes"),
        (whsk(b"x" * 65), "seed of 32 bytes"),
        (whsk(b"x" * 64), "does not belong to its seed"),
    ],
)
def test_invalid_secrets_are_rejected_without_quoting_them(text: str, reason: str) -> None:
    with pytest.raises(InvalidSecretError, match=reason) as caught:
        parse_secret(text)
    assert text == "" or text not in str(caught.value)


def test_repr_of_a_secret_contains_no_part_of_it() -> None:
    for text in (HMAC_SECRET, ED25519_SECRET):
        secret = parse_secret(text)
        signer = Signer([secret])
        for shown in (repr(secret), str(secret), f"{secret}", repr(signer)):
            assert text[6:20] not in shown
            assert repr(secret.key)[2:10] not in shown
