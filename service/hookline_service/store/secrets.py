"""Encryption of secrets at rest: AES-256-GCM with a master key, bound to the row of the secret.

Theory of operation. A sealed secret names its format and its key, so that keys can be rotated
without rewriting stored secrets:

    version (1 byte) | key id (8) | nonce (12) | ciphertext and tag

Version 1 is encrypted with the master key that the key id names, version 2 with the data key of a
tenant (data_keys.py). The key id is a hash of the key, so an error can name a missing key; it is
also the check value of the key. The associated data contains the place of the secret, such as the
tenant, the subscription and the version of the secret: a copy in another row cannot be decrypted.

No error contains any part of a key or a secret.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
"""NIST SP 800-38D section 8.2.2: random nonces of 96 bits allow 2^32 secrets per key."""

KEY_ID_BYTES = 8

UNDER_MASTER_KEY = 1
"""The format version of secrets encrypted with a master key."""
UNDER_DATA_KEY = 2
"""The format version of secrets encrypted with a data key of a tenant."""

_HEAD_BYTES = 1 + KEY_ID_BYTES + NONCE_BYTES
_TAG_BYTES = 16


class MasterKeyError(Exception):
    """An unusable master key, or a key file with unsafe permissions; the text says what to do."""


class SealedSecretError(Exception):
    """A stored secret that cannot be decrypted: its key is missing, or it was modified or moved."""


class Place(Protocol):
    """The place of a sealed secret; at another place it cannot be decrypted."""

    def associated_data(self) -> bytes:
        """Return the associated data, which is authenticated but not stored."""


class SecretPlace(NamedTuple):
    """The place of a secret of a subscription."""

    tenant_uid: UUID
    subscription_uid: UUID
    version: int
    kind: bytes = b"hookline signing secret"

    def associated_data(self) -> bytes:
        """Return the kind, both uids and the version."""
        uids = self.tenant_uid.bytes + self.subscription_uid.bytes
        return self.kind + b"\0" + uids + self.version.to_bytes(4, "big")


class Sealed(NamedTuple):
    """The parts of a sealed secret."""

    version: int
    key_id: bytes
    nonce: bytes
    ciphertext: bytes


def key_id_of(key: bytes) -> bytes:
    """Return the id of a key, which does not reveal the key."""
    return hashlib.sha256(b"hookline key id\0" + key).digest()[:KEY_ID_BYTES]


def parse_sealed(sealed: bytes) -> Sealed:
    """Parse a sealed secret; raise `SealedSecretError` if it is truncated."""
    if len(sealed) < _HEAD_BYTES + _TAG_BYTES:
        raise SealedSecretError("a stored secret has a format that this version cannot read")
    return Sealed(
        sealed[0],
        sealed[1 : 1 + KEY_ID_BYTES],
        sealed[1 + KEY_ID_BYTES : _HEAD_BYTES],
        sealed[_HEAD_BYTES:],
    )


class SecretBox:
    """Decrypts with any of its master keys, and encrypts with the first."""

    def __init__(
        self,
        master_keys: Sequence[bytes],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        if not master_keys or any(len(key) != KEY_BYTES for key in master_keys):
            raise MasterKeyError(f"at least one master key of {KEY_BYTES} bytes is needed")
        self._ciphers = {key_id_of(key): AESGCM(key) for key in master_keys}
        self.key_ids = tuple(self._ciphers)
        """The ids of its keys; the first key encrypts."""
        self._random_bytes = random_bytes

    def seal(self, secret: bytes, place: Place) -> bytes:
        """Encrypt a secret for its place."""
        current, nonce = self.key_ids[0], self._random_bytes(NONCE_BYTES)
        ciphertext = self._ciphers[current].encrypt(nonce, secret, place.associated_data())
        return bytes([UNDER_MASTER_KEY]) + current + nonce + ciphertext

    def open(self, sealed: bytes, place: Place) -> bytes:
        """Decrypt a secret at its place; raise `SealedSecretError`."""
        parts = parse_sealed(sealed)
        if parts.version != UNDER_MASTER_KEY:
            raise SealedSecretError("a stored secret has a format that this version cannot read")
        cipher = self._ciphers.get(parts.key_id)
        if cipher is None:
            raise SealedSecretError(
                f"a secret is sealed with the master key {parts.key_id.hex()}, which"
                f" HOOKLINE_MASTER_KEY lacks; it has {names_of(self.key_ids)}"
            )
        try:
            return cipher.decrypt(parts.nonce, parts.ciphertext, place.associated_data())
        except InvalidTag:
            raise SealedSecretError(
                f"a secret sealed with the master key {parts.key_id.hex()} was changed, or moved"
                " from another subscription"
            ) from None


def names_of(key_ids: Iterable[bytes]) -> str:
    """Return key ids as text."""
    return ", ".join(key_id.hex() for key_id in key_ids)


def parse_master_keys(text: str) -> tuple[bytes, ...]:
    """Parse HOOKLINE_MASTER_KEY: the base64 of 32 bytes, or several joined by commas.

    The first key encrypts. Raises `MasterKeyError`, which names an invalid key by its position.
    """
    keys: list[bytes] = []
    for number, part in enumerate(text.split(","), start=1):
        try:
            key = base64.b64decode(part.strip(), validate=True)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise MasterKeyError(
                f"master key {number} is not the base64 of {KEY_BYTES} bytes;"
                " create one with `openssl rand -base64 32`"
            )
        keys.append(key)
    if len(set(keys)) != len(keys):
        raise MasterKeyError("the same master key is given twice: remove one")
    return tuple(keys)


def load_or_create_master_key(path: Path) -> tuple[bytes, ...]:
    """Return the keys in a file; create the file with a new key (mode 0600) if it does not exist.

    For development: if the file is lost, so are the secrets. Processes that start concurrently read
    the same key. Raises `MasterKeyError` if the file belongs to another user, is readable by
    others, or contains no valid key.
    """
    with contextlib.suppress(FileNotFoundError):
        return _read_keys(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    key = base64.b64encode(secrets.token_bytes(KEY_BYTES))
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(key + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):  # another process created it first: use its key
            os.link(draft, path)
    finally:
        draft.unlink()
    _sync_directory(path.parent)
    return _read_keys(path)


def _read_keys(path: Path) -> tuple[bytes, ...]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise MasterKeyError(
                f"{path} must belong to the user of Hookline, without permissions for other users,"
                " because the key decrypts all signing secrets. If no other user has read it, use"
                " chmod 600; otherwise replace the key"
            )
        text = file.read()
    try:
        return parse_master_keys(text)
    except MasterKeyError as error:
        raise MasterKeyError(f"{path}: {error}") from None


def _sync_directory(directory: Path) -> None:
    """Make the name of a new file durable: otherwise a crash could lose the key."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
