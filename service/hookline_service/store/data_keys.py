"""Envelope encryption of tenants' secrets: a data key per tenant, encrypted with a master key.

Theory of operation. A rotation of the master key encrypts only the data keys again; they are few
and small, and the secrets stay unchanged. A tenant has one data key, or several if the master key
of an older one was lost: a secret names its data key, so nothing is overwritten that a recovered
key could still decrypt. Secrets of the format without a data key (version 1) are readable, too,
until `master_keys.py` has converted them.

Decrypted data keys are cached, a bounded number of them, by their encrypted form.

Runs no statements: each statement that reads a secret also reads the data keys of its tenant.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hookline_service.store.secrets import (
    KEY_BYTES,
    NONCE_BYTES,
    UNDER_DATA_KEY,
    UNDER_MASTER_KEY,
    SealedSecretError,
    SecretBox,
    SecretPlace,
    key_id_of,
    parse_sealed,
)


class DataKeyPlace(NamedTuple):
    """The place of a data key."""

    tenant_uid: UUID
    key_id: bytes

    def associated_data(self) -> bytes:
        """Return the tenant and the id of the key."""
        return b"hookline data key\0" + self.tenant_uid.bytes + self.key_id


class DataKey(NamedTuple):
    """A data key of a tenant in its stored form."""

    key_id: bytes
    sealed: bytes


class TenantSecrets:
    """Encrypts and decrypts the secrets of tenants."""

    def __init__(
        self,
        box: SecretBox,
        *,
        opened_max: int = 4_096,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`opened_max`: the number of cached data keys, about 1 kB each."""
        self.box = box
        self._opened_max = opened_max
        self._random_bytes = random_bytes
        self._opened: OrderedDict[tuple[UUID, DataKey], AESGCM] = OrderedDict()

    @property
    def opened_count(self) -> int:
        """The number of cached data keys."""
        return len(self._opened)

    def make_data_key(self, tenant_uid: UUID) -> DataKey:
        """Return a new data key for a tenant, to be stored."""
        key = self._random_bytes(KEY_BYTES)
        key_id = key_id_of(key)
        return DataKey(key_id, self.box.seal(key, DataKeyPlace(tenant_uid, key_id)))

    def usable(self, tenant_uid: UUID, data_keys: Iterable[DataKey]) -> DataKey | None:
        """Return the first data key that can be decrypted; None if a new one is needed."""
        for data_key in data_keys:
            try:
                self._cipher_of(tenant_uid, data_key)
            except SealedSecretError:
                continue
            return data_key
        return None

    def seal(self, secret: bytes, place: SecretPlace, data_key: DataKey) -> bytes:
        """Encrypt a secret for its place; raise `SealedSecretError`."""
        cipher = self._cipher_of(place.tenant_uid, data_key)
        nonce = self._random_bytes(NONCE_BYTES)
        ciphertext = cipher.encrypt(nonce, secret, place.associated_data())
        return bytes([UNDER_DATA_KEY]) + data_key.key_id + nonce + ciphertext

    def open(self, sealed: bytes, place: SecretPlace, data_keys: Iterable[DataKey]) -> bytes:
        """Decrypt a secret at its place; raise `SealedSecretError`."""
        parts = parse_sealed(sealed)
        if parts.version == UNDER_MASTER_KEY:
            return self.box.open(sealed, place)
        if parts.version != UNDER_DATA_KEY:
            raise SealedSecretError("a stored secret has a format that this version cannot read")
        for data_key in data_keys:
            if data_key.key_id == parts.key_id:
                break
        else:
            raise SealedSecretError(
                f"a secret is sealed with the data key {parts.key_id.hex()}, which does not"
                " exist or belongs to another tenant"
            )
        cipher = self._cipher_of(place.tenant_uid, data_key)
        try:
            return cipher.decrypt(parts.nonce, parts.ciphertext, place.associated_data())
        except InvalidTag:
            raise SealedSecretError(
                f"a secret sealed with the data key {parts.key_id.hex()} was changed, or moved from"
                " another subscription"
            ) from None

    def _cipher_of(self, tenant_uid: UUID, data_key: DataKey) -> AESGCM:
        name = (tenant_uid, data_key)
        cipher = self._opened.get(name)
        if cipher is None:
            place = DataKeyPlace(tenant_uid, data_key.key_id)
            cipher = self._opened[name] = AESGCM(self.box.open(data_key.sealed, place))
            if len(self._opened) > self._opened_max:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end(name)
        return cipher
