"""Signatures by Standard Webhooks 1.0.0: secrets, and the signatures of a request's exact bytes.

Signed content is `id.timestamp.body`. Two schemes: `v1`, HMAC-SHA256 under a shared secret
(`whsec_`), and `v1a`, ed25519 under a key pair (`whsk_`, its public half `whpk_`). During a
rotation every live secret signs, and the header lists all signatures, so that a receiver verifies
with either.

A secret is readable only through `text`; its repr and errors contain no part of it.

Source: the Standard Webhooks specification, "Signature scheme" and "Secret serialization".
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hookline_service.domain.subscription import SignatureScheme

HMAC_PREFIX = "whsec_"
ED25519_PREFIX = "whsk_"
ED25519_PUBLIC_PREFIX = "whpk_"

MIN_HMAC_KEY_BYTES = 24
MAX_HMAC_KEY_BYTES = 64
NEW_KEY_BYTES = 32
ED25519_SEED_BYTES = 32


class InvalidSecretError(ValueError):
    """An imported secret that cannot sign; the text says why, without any part of the secret."""


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """One live secret: the raw HMAC key, or the ed25519 seed."""

    scheme: SignatureScheme
    key: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The serialized secret: `whsec_…`, or `whsk_…` (seed and public key)."""
        if self.scheme is SignatureScheme.HMAC_SHA256:
            return HMAC_PREFIX + _to_base64(self.key)
        return ED25519_PREFIX + _to_base64(self.key + _public_bytes(self.key))

    @property
    def public_key(self) -> str:
        """The public verification key `whpk_…`; empty for HMAC."""
        if self.scheme is SignatureScheme.HMAC_SHA256:
            return ""
        return ED25519_PUBLIC_PREFIX + _to_base64(_public_bytes(self.key))


def generate_secret(
    scheme: SignatureScheme, random_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> SigningSecret:
    """Generate a secret of 32 random bytes."""
    return SigningSecret(scheme, random_bytes(NEW_KEY_BYTES))


def parse_secret(text: str) -> SigningSecret:
    """Parse an imported secret; raise `InvalidSecretError`.

    `whsec_` takes base64 of 24 to 64 bytes. `whsk_` takes base64 of the 32-byte seed, alone or with
    its public key behind it.
    """
    if text.startswith(HMAC_PREFIX):
        key = _from_base64(text.removeprefix(HMAC_PREFIX))
        if not MIN_HMAC_KEY_BYTES <= len(key) <= MAX_HMAC_KEY_BYTES:
            raise InvalidSecretError(
                f"must hold {MIN_HMAC_KEY_BYTES} to {MAX_HMAC_KEY_BYTES} bytes, not {len(key)}"
            )
        return SigningSecret(SignatureScheme.HMAC_SHA256, key)
    if text.startswith(ED25519_PREFIX):
        return SigningSecret(
            SignatureScheme.ED25519, _seed_of(_from_base64(text.removeprefix(ED25519_PREFIX)))
        )
    if text.startswith(ED25519_PUBLIC_PREFIX):
        raise InvalidSecretError("is a public key: signing takes the secret one, whsk_")
    raise InvalidSecretError(f"must begin with {HMAC_PREFIX} or {ED25519_PREFIX}")


class Signer:
    """Signs with every live secret of a subscription; made once, used for each attempt."""

    __slots__ = ("_ed25519_keys", "_hmac_keys")

    def __init__(self, live_secrets: Sequence[SigningSecret]) -> None:
        """`live_secrets` newest first; raises ValueError if there is none."""
        if not live_secrets:
            raise ValueError("a signer needs at least one live secret")
        self._hmac_keys = tuple(
            secret.key for secret in live_secrets if secret.scheme is SignatureScheme.HMAC_SHA256
        )
        self._ed25519_keys = tuple(
            Ed25519PrivateKey.from_private_bytes(secret.key)
            for secret in live_secrets
            if secret.scheme is SignatureScheme.ED25519
        )

    def sign(self, webhook_id: str, timestamp_s: int, body: bytes) -> str:
        """Return the value of `webhook-signature`: one signature for each live secret.

        `timestamp_s` is the attempt's Unix time in seconds, `body` exactly the bytes that will be
        sent.
        """
        content = f"{webhook_id}.{timestamp_s}.".encode() + body
        signatures = [
            f"v1,{_to_base64(hmac.digest(key, content, 'sha256'))}" for key in self._hmac_keys
        ]
        if self._ed25519_keys:
            signatures += [f"v1a,{_to_base64(key.sign(content))}" for key in self._ed25519_keys]
        return " ".join(signatures)


def _seed_of(key: bytes) -> bytes:
    seed, public = key[:ED25519_SEED_BYTES], key[ED25519_SEED_BYTES:]
    if len(seed) != ED25519_SEED_BYTES or len(public) not in {0, ED25519_SEED_BYTES}:
        raise InvalidSecretError(
            f"must hold a seed of 32 bytes, alone or with its public key's 32, not {len(key)} bytes"
        )
    if public and public != _public_bytes(seed):
        raise InvalidSecretError("has a public key that does not belong to its seed")
    return seed


def _public_bytes(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def _to_base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode()


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise InvalidSecretError("must be standard base64 after its prefix") from None
