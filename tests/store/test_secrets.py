"""Encryption of secrets at rest, and errors for missing or invalid master keys."""

from __future__ import annotations

import base64
import multiprocessing
import stat
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline_service.store.secrets import (
    MasterKeyError,
    SealedSecretError,
    SecretBox,
    SecretPlace,
    key_id_of,
    load_or_create_master_key,
    parse_master_keys,
)

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
PLACE = SecretPlace(UUID(int=1), UUID(int=2), 1)
SECRET = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def encoded(*keys: bytes) -> str:
    return ",".join(base64.b64encode(key).decode() for key in keys)


# ------------------------------------------------------------------------------------- the box


@given(st.binary(max_size=200))
def test_secret_is_decrypted_at_its_place(secret: bytes) -> None:
    box = SecretBox([KEY])
    assert box.open(box.seal(secret, PLACE), PLACE) == secret


def test_the_format_is_version_key_id_nonce_ciphertext() -> None:
    sealed = SecretBox([KEY], random_bytes=lambda n: b"n" * n).seal(SECRET, PLACE)
    assert sealed[:1] == b"\x01"
    assert sealed[1:9] == key_id_of(KEY)
    assert sealed[9:21] == b"n" * 12
    assert len(sealed) == 1 + 8 + 12 + len(SECRET) + 16


def test_secret_of_an_earlier_version_is_decrypted() -> None:
    sealed = bytes.fromhex(
        "014a0c9a5ce1a4ba086e6e6e6e6e6e6e6e6e6e6e6eef5394d572ebc8bf07753236bbeee78df2998bcb7ae47e"
        "a005332f1ee8867611e3cf07eb5c2a6c1817191da061932d7139e573642c20"
    )
    assert SecretBox([KEY]).open(sealed, PLACE) == SECRET


def test_sealed_secrets_hide_the_plaintext_and_are_unique() -> None:
    box = SecretBox([KEY])
    first, second = box.seal(SECRET, PLACE), box.seal(SECRET, PLACE)
    assert SECRET[6:] not in first
    assert first[21:] != second[21:]


def test_all_keys_decrypt_and_the_first_encrypts() -> None:
    old = SecretBox([OTHER_KEY]).seal(SECRET, PLACE)
    box = SecretBox([KEY, OTHER_KEY])
    assert box.open(old, PLACE) == SECRET
    assert SecretBox([KEY]).open(box.seal(SECRET, PLACE), PLACE) == SECRET


def test_a_missing_key_is_named() -> None:
    sealed = SecretBox([OTHER_KEY]).seal(SECRET, PLACE)
    with pytest.raises(SealedSecretError, match=key_id_of(OTHER_KEY).hex()) as caught:
        SecretBox([KEY]).open(sealed, PLACE)
    assert "HOOKLINE_MASTER_KEY" in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        PLACE._replace(tenant_uid=UUID(int=9)),
        PLACE._replace(subscription_uid=UUID(int=9)),
        PLACE._replace(version=2),
    ],
)
def test_secret_is_not_decrypted_at_another_place(place: SecretPlace) -> None:
    box = SecretBox([KEY])
    with pytest.raises(SealedSecretError, match="changed, or moved"):
        box.open(box.seal(SECRET, PLACE), place)


@given(st.data())
def test_changed_or_truncated_secret_is_not_decrypted(data: st.DataObject) -> None:
    box = SecretBox([KEY])
    sealed = bytearray(box.seal(SECRET, PLACE))
    if data.draw(st.booleans()):
        sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del sealed[data.draw(st.integers(0, len(sealed) - 1)) :]
    with pytest.raises(SealedSecretError):
        box.open(bytes(sealed), PLACE)


@pytest.mark.parametrize("keys", [[], [b"short"], [KEY, b"k" * 33]])
def test_secret_box_requires_keys_of_32_bytes(keys: list[bytes]) -> None:
    with pytest.raises(MasterKeyError, match="32 bytes"):
        SecretBox(keys)


# ------------------------------------------------------------------------------ HOOKLINE_MASTER_KEY


def test_master_keys_are_parsed_in_order() -> None:
    assert parse_master_keys(encoded(KEY)) == (KEY,)
    assert parse_master_keys(f" {encoded(KEY)} ,\n{encoded(OTHER_KEY)}\n") == (KEY, OTHER_KEY)


@pytest.mark.parametrize(
    "text,place",
    [
        ("", 1),
        (",", 1),
        (encoded(KEY) + ",", 2),
        (encoded(KEY, b"short"), 2),
        (encoded(b"k" * 31), 1),
        (encoded(b"k" * 33), 1),
        ("hunter2hunter2hunter2hunter2hunter2", 1),
        (base64.urlsafe_b64encode(b"\xfb\xff" * 16).decode(), 1),
        (encoded(KEY).replace("=", ""), 1),
    ],
)
def test_an_invalid_key_is_named_by_position_and_never_shown(text: str, place: int) -> None:
    with pytest.raises(MasterKeyError, match=f"master key {place} is not the base64") as caught:
        parse_master_keys(text)
    assert not any(part and part in str(caught.value) for part in text.split(","))


def test_duplicate_master_key_is_refused() -> None:
    with pytest.raises(MasterKeyError, match="twice"):
        parse_master_keys(encoded(KEY, OTHER_KEY, KEY))


# ------------------------------------------------------------------------------------- the key file


def test_key_file_is_created_once_and_readable_only_by_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    made = load_or_create_master_key(path)
    assert load_or_create_master_key(path) == made
    assert [len(key) for key in made] == [32]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["master.key"]


def test_concurrent_processes_share_one_created_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        keys = pool.map(load_or_create_master_key, [tmp_path / "master.key"] * 16)
    assert len(set(keys)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["master.key"]


def test_key_file_can_contain_several_keys(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    path.write_text(encoded(KEY, OTHER_KEY) + "\n")
    path.chmod(0o600)
    assert load_or_create_master_key(path) == (KEY, OTHER_KEY)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o620])
def test_key_file_accessible_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    path.write_text(encoded(KEY))
    path.chmod(mode)
    with pytest.raises(MasterKeyError, match="chmod 600"):
        load_or_create_master_key(path)


def test_invalid_key_file_is_named_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(b"\xff\x00 no key")
    path.chmod(0o600)
    with pytest.raises(MasterKeyError, match=r"master\.key: master key 1"):
        load_or_create_master_key(path)
    assert path.read_bytes() == b"\xff\x00 no key"
