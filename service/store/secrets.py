"""Secrets at rest: sealed with AES-256-GCM under a master key, bound to the row they belong to.

Theory of operation. A sealed secret is self-describing, so that keys can be rotated, and a
hierarchy of keys introduced, without rewriting what is stored:

    version (1 byte) | key id (8) | nonce (12) | ciphertext and tag

Version 1 is AES-256-GCM under the master key that the key id names; a data key per tenant would be
a version 2 whose key id names that data key. The key id is a hash of the key, so a secret sealed
under a key that this process was not given says which one is missing. The associated data names the
tenant, the subscription and the secret's version: a sealed secret copied to another row does not
open.

Must not know what the secrets are for. No error here carries any part of a key or a secret.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

KEY_BYTES = 32
NONCE_BYTES = 12
"""NIST SP 800-38D section 8.2.2: random nonces of 96 bits serve for 2^32 secrets under one key."""

_FORMAT_VERSION = 1
_KEY_ID_BYTES = 8
_HEAD_BYTES = 1 + _KEY_ID_BYTES + NONCE_BYTES
_TAG_BYTES = 16


class MasterKeyError(Exception):
    """A master key that cannot be used, or a file that cannot be trusted; says what to do."""


class SealedSecretError(Exception):
    """A stored secret that does not open: its key is missing, or it was changed or moved."""


class SecretPlace(NamedTuple):
    """Where a secret belongs; it opens nowhere else."""

    tenant_uid: UUID
    subscription_uid: UUID
    version: int

    def associated_data(self) -> bytes:
        """What is authenticated with the secret though not stored with it."""
        uids = self.tenant_uid.bytes + self.subscription_uid.bytes
        return b"hookline signing secret\0" + uids + self.version.to_bytes(4, "big")


def key_id_of(key: bytes) -> bytes:
    """What names a key without telling it."""
    return hashlib.sha256(b"hookline key id\0" + key).digest()[:_KEY_ID_BYTES]


class SecretBox:
    """Opens what any of its keys sealed; seals with the first."""

    def __init__(
        self,
        master_keys: Sequence[bytes],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        if not master_keys or any(len(key) != KEY_BYTES for key in master_keys):
            raise MasterKeyError(f"at least one master key of {KEY_BYTES} bytes is needed")
        self._ciphers = {key_id_of(key): AESGCM(key) for key in master_keys}
        self._current = key_id_of(master_keys[0])
        self._random_bytes = random_bytes

    def seal(self, secret: bytes, place: SecretPlace) -> bytes:
        """The secret as it may be stored at its place."""
        nonce = self._random_bytes(NONCE_BYTES)
        ciphertext = self._ciphers[self._current].encrypt(nonce, secret, place.associated_data())
        return bytes([_FORMAT_VERSION]) + self._current + nonce + ciphertext

    def open(self, sealed: bytes, place: SecretPlace) -> bytes:
        """The secret that was sealed for this place; raises `SealedSecretError`."""
        if len(sealed) < _HEAD_BYTES + _TAG_BYTES or sealed[0] != _FORMAT_VERSION:
            raise SealedSecretError("a stored secret has a format that this version cannot read")
        key_id, nonce = sealed[1 : 1 + _KEY_ID_BYTES], sealed[1 + _KEY_ID_BYTES : _HEAD_BYTES]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise SealedSecretError(
                f"a secret is sealed with the master key {key_id.hex()}, which HOOKLINE_MASTER_KEY"
                f" lacks; it has {', '.join(sorted(known.hex() for known in self._ciphers))}"
            )
        try:
            return cipher.decrypt(nonce, sealed[_HEAD_BYTES:], place.associated_data())
        except InvalidTag:
            raise SealedSecretError(
                f"a secret sealed with the master key {key_id.hex()} was changed, or moved from"
                " another subscription"
            ) from None


def parse_master_keys(text: str) -> tuple[bytes, ...]:
    """The keys of HOOKLINE_MASTER_KEY: base64 of 32 bytes, several joined by commas.

    The first one seals. `MasterKeyError`: one of them is not such a key; it is told by its place.
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
                " `openssl rand -base64 32` makes one"
            )
        keys.append(key)
    if len(set(keys)) != len(keys):
        raise MasterKeyError("the same master key stands twice")
    return tuple(keys)


def load_or_create_master_key(path: Path) -> tuple[bytes, ...]:
    """The keys in a file, which is made with a new key (mode 0600) where there is none.

    For development: without the file, what was sealed is lost. Of several processes that start at
    once all read the same key. `MasterKeyError`: the file is another user's, or readable by others,
    or holds no key.
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
        with contextlib.suppress(FileExistsError):  # another process was quicker: its key counts
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
                f"{path} must belong to the user who runs Hookline and be closed to all others:"
                " whoever read it can read every signing secret. Close it with chmod 600, if you"
                " know that nobody has"
            )
        text = file.read()
    try:
        return parse_master_keys(text)
    except MasterKeyError as error:
        raise MasterKeyError(f"{path}: {error}") from None


def _sync_directory(directory: Path) -> None:
    """Make a new file's name durable too: a key that is lost in a crash opens nothing any more."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
