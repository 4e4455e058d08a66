"""Secrets at rest: sealed with AES-256-GCM under a master key, bound to the row they belong to.

Theory of operation. What is sealed is self-describing, so that keys can be rotated without
rewriting what is stored:

    version (1 byte) | key id (8) | nonce (12) | ciphertext and tag

Version 1 is AES-256-GCM under the master key that the key id names, version 2 the same under the
data key of a tenant (data_keys.py). The key id is a hash of the key, so what is sealed under a key
that this process was not given says which one is missing; it serves as the key's check value, too.
The associated data names the place that a sealed thing belongs to, such as a tenant, a subscription
and the secret's version: copied to another row it does not open.

Must not know what the secrets are for. No error here carries any part of a key or a secret.
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
"""NIST SP 800-38D section 8.2.2: random nonces of 96 bits serve for 2^32 secrets under one key."""

KEY_ID_BYTES = 8

UNDER_MASTER_KEY = 1
"""The format's version of what a master key sealed."""
UNDER_DATA_KEY = 2
"""The format's version of what a tenant's data key sealed."""

_HEAD_BYTES = 1 + KEY_ID_BYTES + NONCE_BYTES
_TAG_BYTES = 16


class MasterKeyError(Exception):
    """A master key that cannot be used, or a file that cannot be trusted; says what to do."""


class SealedSecretError(Exception):
    """A stored secret that does not open: its key is missing, or it was changed or moved."""


class Place(Protocol):
    """Where a sealed thing belongs; it opens nowhere else."""

    def associated_data(self) -> bytes:
        """What is authenticated with the thing though not stored with it."""


class SecretPlace(NamedTuple):
    """Where a subscription's secret belongs."""

    tenant_uid: UUID
    subscription_uid: UUID
    version: int
    kind: bytes = b"hookline signing secret"

    def associated_data(self) -> bytes:
        """The kind, both uids and the version: a recreated name reads nothing old."""
        uids = self.tenant_uid.bytes + self.subscription_uid.bytes
        return self.kind + b"\0" + uids + self.version.to_bytes(4, "big")


class Sealed(NamedTuple):
    """A sealed thing, taken apart."""

    version: int
    key_id: bytes
    nonce: bytes
    ciphertext: bytes


def key_id_of(key: bytes) -> bytes:
    """What names a key without telling it."""
    return hashlib.sha256(b"hookline key id\0" + key).digest()[:KEY_ID_BYTES]


def take_apart(sealed: bytes) -> Sealed:
    """What a sealed thing says of itself; raises `SealedSecretError` where it is cut."""
    if len(sealed) < _HEAD_BYTES + _TAG_BYTES:
        raise SealedSecretError("a stored secret has a format that this version cannot read")
    return Sealed(
        sealed[0],
        sealed[1 : 1 + KEY_ID_BYTES],
        sealed[1 + KEY_ID_BYTES : _HEAD_BYTES],
        sealed[_HEAD_BYTES:],
    )


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
        self.key_ids = tuple(self._ciphers)
        """What names its keys; the first one seals."""
        self._random_bytes = random_bytes

    def seal(self, secret: bytes, place: Place) -> bytes:
        """The secret as it may be stored at its place."""
        current, nonce = self.key_ids[0], self._random_bytes(NONCE_BYTES)
        ciphertext = self._ciphers[current].encrypt(nonce, secret, place.associated_data())
        return bytes([UNDER_MASTER_KEY]) + current + nonce + ciphertext

    def open(self, sealed: bytes, place: Place) -> bytes:
        """The secret that was sealed for this place; raises `SealedSecretError`."""
        parts = take_apart(sealed)
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
    """Key ids for people."""
    return ", ".join(key_id.hex() for key_id in key_ids)


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
