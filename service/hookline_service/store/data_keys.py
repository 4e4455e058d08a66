"""Secrets of tenants: sealed under a data key of the tenant's own, which a master key seals.

Theory of operation. A master key is rotated by sealing the data keys anew: they are few and small,
and what they sealed stays as it is. A tenant has one data key, or several where the master key of
an older one was lost: secrets name the data key that sealed them, so nothing is overwritten that a
key which is found again could still open. What was sealed before there were data keys (version 1)
opens, too, until `key_rotation.py` has sealed it anew.

Opened data keys are remembered, a bounded number of them, by what they look like sealed: one that
was sealed anew is another.

Must not run a statement: whoever reads a secret reads the data keys of its tenant with it.
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
    take_apart,
)


class DataKeyPlace(NamedTuple):
    """Where a data key belongs."""

    tenant_uid: UUID
    key_id: bytes

    def associated_data(self) -> bytes:
        """The tenant and the key's own id: another tenant's does not open in its place."""
        return b"hookline data key\0" + self.tenant_uid.bytes + self.key_id


class DataKey(NamedTuple):
    """A tenant's data key as it is stored."""

    key_id: bytes
    sealed: bytes


class TenantSecrets:
    """Seals and opens what belongs to tenants."""

    def __init__(
        self,
        box: SecretBox,
        *,
        opened_max: int = 4_096,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`opened_max`: data keys that are remembered, about 1 kB each."""
        self.box = box
        self._opened_max = opened_max
        self._random_bytes = random_bytes
        self._opened: OrderedDict[tuple[UUID, DataKey], AESGCM] = OrderedDict()

    @property
    def opened_count(self) -> int:
        """Data keys that are remembered."""
        return len(self._opened)

    def make_data_key(self, tenant_uid: UUID) -> DataKey:
        """A new data key for a tenant, to be stored."""
        key = self._random_bytes(KEY_BYTES)
        key_id = key_id_of(key)
        return DataKey(key_id, self.box.seal(key, DataKeyPlace(tenant_uid, key_id)))

    def usable(self, tenant_uid: UUID, data_keys: Iterable[DataKey]) -> DataKey | None:
        """The first of a tenant's data keys that opens: what to seal with. None: make one."""
        for data_key in data_keys:
            try:
                self._cipher_of(tenant_uid, data_key)
            except SealedSecretError:
                continue
            return data_key
        return None

    def seal(self, secret: bytes, place: SecretPlace, data_key: DataKey) -> bytes:
        """The secret as it may be stored at its place; raises `SealedSecretError`."""
        cipher = self._cipher_of(place.tenant_uid, data_key)
        nonce = self._random_bytes(NONCE_BYTES)
        ciphertext = cipher.encrypt(nonce, secret, place.associated_data())
        return bytes([UNDER_DATA_KEY]) + data_key.key_id + nonce + ciphertext

    def open(self, sealed: bytes, place: SecretPlace, data_keys: Iterable[DataKey]) -> bytes:
        """The secret that was sealed for this place; raises `SealedSecretError`."""
        parts = take_apart(sealed)
        if parts.version == UNDER_MASTER_KEY:
            return self.box.open(sealed, place)
        if parts.version != UNDER_DATA_KEY:
            raise SealedSecretError("a stored secret has a format that this version cannot read")
        for data_key in data_keys:
            if data_key.key_id == parts.key_id:
                break
        else:
            raise SealedSecretError(
                f"a secret is sealed with the data key {parts.key_id.hex()}, which is gone, or"
                " another tenant's"
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
