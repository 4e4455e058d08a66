"""API keys: what one is, what its token looks like, and what is kept of that.

A token is `hk_ID_SECRET`, in letters of base62. The secret is 43 of them, drawn each by itself:
256 bits. What is stored is a keyed hash over the whole token, so that a copy of the database
without the key of its deployment lets nobody in, and an id with another's secret nobody either.
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
    """`apiKeys/4rTq8sB0aZ1k`."""
    return f"apiKeys/{key_id}"


def check_key_id(text: str) -> str | None:
    """The grammar of a key's id: what is wrong with it, or None."""
    if _ID.fullmatch(text):
        return None
    return f"must be {ID_LENGTH} letters and digits"


def make_key_id(below: Callable[[int], int]) -> str:
    """A new id. `below` draws a number below another."""
    return _letters(ID_LENGTH, below)


def make_token(key_id: str, below: Callable[[int], int]) -> str:
    """A new token. `below` draws a number below another, and nobody can tell which."""
    return f"{TOKEN_PREFIX}{key_id}_{_letters(SECRET_LENGTH, below)}"


def key_id_in(token: str) -> str | None:
    """The id that a token names, or None where it is none."""
    match = _TOKEN.fullmatch(token)
    return match[1] if match else None


def digest_of(token: str, deployment_key: bytes) -> bytes:
    """What is stored of a token (HMAC-SHA256, RFC 2104)."""
    return hmac.digest(deployment_key, b"hookline api key\0" + token.encode(), "sha256")


def _letters(count: int, below: Callable[[int], int]) -> str:
    return "".join(ALPHABET[below(len(ALPHABET))] for _ in range(count))
