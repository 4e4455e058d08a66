"""An OIDC issuer of our own: keys, the JWK Set that publishes them, and tokens."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

ISSUER = "https://login.example.org/"
AUDIENCE = "hookline"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class In:
    """A moment, counted from when the token is made."""

    seconds: int


class Issuer:
    """Has one key of each algorithm that counts, under the algorithm's name."""

    def __init__(self) -> None:
        shared = rsa.generate_private_key(65537, 2048)
        self.keys: dict[str, tuple[str, PrivateKey]] = {
            "RS256": ("RS256", shared),
            "PS256": ("PS256", shared),
            "ES256": ("ES256", ec.generate_private_key(ec.SECP256R1())),
            "EdDSA": ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
        }
        """Algorithm and key, by the key's id."""

    def key_set(self, *key_ids: str) -> bytes:
        """What it publishes of these keys, by default of all."""
        return json.dumps({"keys": [self.jwk(key_id) for key_id in key_ids or self.keys]}).encode()

    def jwk(self, key_id: str, **changes: object) -> dict[str, Any]:
        """The public part of a key."""
        algorithm, key = self.keys[key_id]
        public: Any = get_default_algorithms()[algorithm]
        jwk = public.to_jwk(key.public_key(), as_dict=True)
        jwk.pop("key_ops", None)
        return {**jwk, "kid": key_id, "use": "sig", **changes}

    def token(
        self, key_id: str = "ES256", *, headers: dict[str, object] | None = None, **changes: object
    ) -> str:
        """A token that counts; None among `changes` leaves a claim out."""
        algorithm, key = self.keys[key_id]
        now_s = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "orders@shop",
            "nbf": In(-5),
            "exp": In(600),
            "scope": "openid hookline:publish hookline:operate",
            "hookline_tenant": "acme",
        } | changes
        return jwt.encode(
            {
                name: now_s + value.seconds if isinstance(value, In) else value
                for name, value in claims.items()
                if value is not None
            },
            key,
            algorithm,
            headers={
                name: value
                for name, value in ({"kid": key_id} | (headers or {})).items()
                if value is not None
            },
        )
