"""API keys: their fields, the format of their tokens, and the digest that is stored.

A token is `hk_ID_SECRET`, in letters of base62. The secret is 43 of them, drawn each by itself:
256 bits. A keyed hash over the whole token is stored, so that a copy of the database without the
key of its deployment gives no access, nor does an id with the secret of another key.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hookline_service.domain.caller import Scope

TOKEN_PREFIX: Final = "hk_"  # noqa: S105 - what every token begins with
ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH: Final = 12
SECRET_LENGTH: Final = 43
"""62^43 is a little more than 2^256."""
DIGEST_BYTES: Final = 32

_ID = re.compile(rf"[0-9A-Za-z]{{{ID_LENGTH}}}", re.ASCII)
_TOKEN = re.compile(rf"hk_([0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is stored, without anything secret."""

    key_id: str
    display_name: str
    tenant_id: str | None
    """The one tenant it is bound to; None: all."""
    scopes: frozenset[Scope]
    create_time: datetime
    expire_time: datetime | None = None
    last_use_time: datetime | None = None
    """To the minute."""
    revoke_time: datetime | None = None


def api_key_name(key_id: str) -> str:
    """Return a name such as `apiKeys/4rTq8sB0aZ1k`."""
    return f"apiKeys/{key_id}"


def check_key_id(text: str) -> str | None:
    """Return what is wrong with the id of a key, or None."""
    if _ID.fullmatch(text):
        return None
    return f"must be {ID_LENGTH} letters and digits"


def make_key_id(below: Callable[[int], int]) -> str:
    """Return a new id. `below` draws a number below its argument."""
    return _letters(ID_LENGTH, below)


def make_token(key_id: str, below: Callable[[int], int]) -> str:
    """Return a new token. `below` draws an unpredictable number below its argument."""
    return f"{TOKEN_PREFIX}{key_id}_{_letters(SECRET_LENGTH, below)}"


def key_id_in(token: str) -> str | None:
    """Return the id in a token; None where the text is no token."""
    match = _TOKEN.fullmatch(token)
    return match[1] if match else None


def digest_of(token: str, deployment_key: bytes) -> bytes:
    """Return the stored digest of a token (HMAC-SHA256, RFC 2104)."""
    return hmac.digest(deployment_key, b"hookline api key\0" + token.encode(), "sha256")


def _letters(count: int, below: Callable[[int], int]) -> str:
    return "".join(ALPHABET[below(len(ALPHABET))] for _ in range(count))
