"""Secrets of tenants: encryption by data keys, and re-encryption of data keys."""

from __future__ import annotations

from uuid import UUID

import pytest

from hookline_service.store.data_keys import DataKey, DataKeyPlace, TenantSecrets
from hookline_service.store.secrets import SealedSecretError, SecretBox, SecretPlace, key_id_of

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
ACME, OTHER = UUID(int=1), UUID(int=9)
PLACE = SecretPlace(ACME, UUID(int=2), 1)
SECRET = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def keyed(*master_keys: bytes) -> TenantSecrets:
    return TenantSecrets(SecretBox(master_keys))


def test_secret_is_decrypted_at_its_place_and_names_its_data_key() -> None:
    secrets = keyed(KEY)
    data_key = secrets.make_data_key(ACME)
    sealed = secrets.seal(SECRET, PLACE, data_key)
    assert (sealed[0], sealed[1:9]) == (2, data_key.key_id)
    assert keyed(KEY).open(sealed, PLACE, [secrets.make_data_key(ACME), data_key]) == SECRET
    assert SECRET[6:] not in sealed


@pytest.mark.parametrize(
    "place",
    [
        PLACE._replace(subscription_uid=UUID(int=9)),
        PLACE._replace(version=2),
        PLACE._replace(kind=b"hookline secret headers"),
    ],
)
def test_secret_is_not_decrypted_at_another_place(place: SecretPlace) -> None:
    secrets = keyed(KEY)
    data_key = secrets.make_data_key(ACME)
    with pytest.raises(SealedSecretError, match="changed, or moved"):
        secrets.open(secrets.seal(SECRET, PLACE, data_key), place, [data_key])


def test_data_key_of_another_tenant_is_not_decrypted() -> None:
    """An attacker that moves a secret with its data key to another row gains nothing."""
    secrets = keyed(KEY)
    data_key = secrets.make_data_key(ACME)
    sealed = secrets.seal(SECRET, PLACE, data_key)
    with pytest.raises(SealedSecretError, match="changed, or moved"):
        secrets.open(sealed, PLACE._replace(tenant_uid=OTHER), [data_key])
    with pytest.raises(SealedSecretError, match="does not exist or belongs to another tenant"):
        secrets.open(sealed, PLACE, [secrets.make_data_key(ACME)])


def test_secret_encrypted_without_a_data_key_is_decrypted() -> None:
    sealed = SecretBox([KEY]).seal(SECRET, PLACE)
    assert keyed(KEY).open(sealed, PLACE, []) == SECRET


def test_reencrypted_data_key_decrypts_earlier_secrets() -> None:
    old = keyed(OTHER_KEY)
    data_key = old.make_data_key(ACME)
    sealed = old.seal(SECRET, PLACE, data_key)
    both = keyed(KEY, OTHER_KEY)
    assert both.open(sealed, PLACE, [data_key]) == SECRET
    place = DataKeyPlace(ACME, data_key.key_id)
    rewrapped = DataKey(
        data_key.key_id, both.box.seal(both.box.open(data_key.sealed, place), place)
    )
    assert rewrapped.sealed[1:9] == key_id_of(KEY)
    assert keyed(KEY).open(sealed, PLACE, [rewrapped]) == SECRET


def test_first_readable_data_key_encrypts() -> None:
    secrets = keyed(KEY)
    lost, good = keyed(OTHER_KEY).make_data_key(ACME), secrets.make_data_key(ACME)
    assert secrets.usable(ACME, [lost, good]) == good
    assert secrets.usable(ACME, [lost]) is None
    assert secrets.usable(OTHER, [good]) is None


def test_cache_of_decrypted_data_keys_is_bounded() -> None:
    secrets = TenantSecrets(SecretBox([KEY]), opened_max=3)
    for number in range(10):
        tenant_uid = UUID(int=number)
        assert secrets.usable(tenant_uid, [secrets.make_data_key(tenant_uid)])
    assert secrets.opened_count == 3


@pytest.mark.parametrize("sealed", [b"", b"\2", b"\3" + b"x" * 60, b"\2" + b"x" * 36])
def test_unknown_format_is_not_decrypted(sealed: bytes) -> None:
    with pytest.raises(SealedSecretError):
        keyed(KEY).open(sealed, PLACE, [])
