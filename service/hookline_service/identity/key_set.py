"""The keys of a token issuer: a JWK Set (RFC 7517), of which what can verify a signature is kept.

Only keys of asymmetric algorithms count; a key is bound to the algorithms that its kind is for, so
that no token can choose another (RFC 8725 section 3.1). What else a set holds (keys for encryption,
kinds that nobody here knows) is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from hookline_service.identity.files import FollowedFiles, SourceError

KEYS: Final = "HOOKLINE_JWT_KEYS"
ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
"""Those that tokens may be signed with; neither `none` nor any of a shared secret."""

MAX_KEYS: Final = 100
RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 8192

_PRIVATE_PARTS: Final = {"d", "k"}
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys, by their id and algorithm."""

    content: bytes = field(repr=False)
    keys: Mapping[tuple[str, str], PublicKey] = field(repr=False, compare=False)
    source: str

    @property
    def summary(self) -> str:
        """How many there are, and whence."""
        return f"{len({kid for kid, _ in self.keys})} keys from {self.source}"

    @property
    def expires_at(self) -> datetime | None:
        """Never."""
        return None

    def find(self, key_id: str | None, algorithm: str) -> PublicKey | None:
        """The key that a token names; without a name, the only one there is of its algorithm."""
        if key_id is not None:
            return self.keys.get((key_id, algorithm))
        fitting = [key for (_, its), key in self.keys.items() if its == algorithm]
        return fitting[0] if len(fitting) == 1 else None


class FileKeys:
    """A key set in a file that is followed."""

    def __init__(self, followed: FollowedFiles[KeySet]) -> None:
        self._followed = followed

    def current(self) -> KeySet | None:
        """What counts."""
        return self._followed.current

    async def renew(self) -> None:
        """Nothing: whoever follows the file looks each second."""


def parse_key_set(content: bytes, source: str) -> KeySet:
    """Judge a JWK Set. Raises `SourceError`."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise SourceError(f'{KEYS}: {source} is no JWK Set, {{"keys": […]}}')
    if len(entries) > MAX_KEYS:
        raise SourceError(f"{KEYS}: {source} holds more than {MAX_KEYS} keys")
    keys: dict[tuple[str, str], PublicKey] = {}
    for number, entry in enumerate(entries):
        for key_id, algorithm, key in _usable(entry, number, source):
            keys.setdefault((key_id, algorithm), key)
    if not keys:
        raise SourceError(f"{KEYS}: {source} holds no key that can verify {', '.join(ALGORITHMS)}")
    return KeySet(content, keys, source)


def _usable(entry: Any, number: int, source: str) -> Iterator[tuple[str, str, PublicKey]]:  # noqa: ANN401 - JSON
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return
    if entry.get("kty") != "oct" and _PRIVATE_PARTS & entry.keys():
        raise SourceError(
            f"{KEYS}: {source} holds a private key: replace it, and publish public parts alone"
        )
    try:
        key: Any = jwt.PyJWK(entry).key if entry.get("kty") in {"RSA", "EC", "OKP"} else None
    except (jwt.PyJWTError, NotImplementedError, ValueError, TypeError):
        return  # one entry of a kind that PyJWT cannot read leaves the others as they are
    key_id = entry.get("kid", f"#{number}")
    if not isinstance(key_id, str):
        return
    for algorithm in _algorithms_of(key):
        if entry.get("alg", algorithm) == algorithm:
            yield key_id, algorithm, key


def _algorithms_of(key: object) -> Sequence[str]:
    match key:
        case rsa.RSAPublicKey() if RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
            return ("RS256", "PS256")
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return ("ES256",)
        case ed25519.Ed25519PublicKey():
            return ("EdDSA",)
        case _:
            return ()
