"""Tokens of API keys: their alphabet, entropy, parsing and stored digest."""

from __future__ import annotations

import math
import secrets

import pytest

from hookline_service.domain.api_key import (
    ALPHABET,
    DIGEST_BYTES,
    SECRET_LENGTH,
    check_key_id,
    digest_of,
    key_id_in,
    make_key_id,
    make_token,
)

KEY = bytes(range(32))


def test_secret_has_256_bits_and_uses_the_whole_alphabet() -> None:
    assert SECRET_LENGTH * math.log2(len(ALPHABET)) >= 256
    assert len(set(ALPHABET)) == 62
    numbers = iter(range(SECRET_LENGTH * 62))
    drawn = "".join(make_token("0" * 12, lambda below: next(numbers) % below) for _ in range(62))
    assert all(letter in drawn for letter in ALPHABET)


def test_token_contains_its_key_id() -> None:
    key_id = make_key_id(secrets.randbelow)
    token = make_token(key_id, secrets.randbelow)
    assert check_key_id(key_id) is None
    assert token == f"hk_{key_id}_{token[-SECRET_LENGTH:]}"
    assert key_id_in(token) == key_id
    assert token != make_token(key_id, secrets.randbelow)


GOOD = make_token("a1B2c3D4e5F6", lambda below: below - 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hk_",
        GOOD[:-1],
        f"{GOOD}0",
        f"{GOOD}\n",
        f" {GOOD}",
        GOOD.replace("hk_", "HK_"),
        GOOD.replace("z", "é", 1),
        GOOD.replace("z", "-", 1),
        GOOD.replace("a1", "a_"),
        GOOD.replace("1", "\u0661"),
    ],
)
def test_malformed_token_has_no_key_id(text: str) -> None:
    assert key_id_in(GOOD) == "a1B2c3D4e5F6"
    assert key_id_in(text) is None


def test_digest_depends_on_every_character_and_on_the_deployment_key() -> None:
    kept = digest_of(GOOD, KEY)
    assert len(kept) == DIGEST_BYTES
    assert kept == digest_of(GOOD, KEY)
    others = {digest_of(GOOD[:n] + "0" + GOOD[n + 1 :], KEY) for n in range(len(GOOD))}
    assert kept not in others
    assert len(others) == len(GOOD)
    assert kept != digest_of(GOOD, KEY[::-1])
    assert GOOD.encode() not in kept
