"""The hash of an ordering key. Deliveries of a subscription with equal hashes keep their order."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from hookline_service.domain.ordering import FIRST_KEY_HASH, key_hash_of

EVENT = UUID("01933b6a-7000-7000-8000-000000000001")


def test_key_hash_is_stable_across_versions() -> None:
    """Pending rows store the hash, and other versions of the service read them."""
    assert key_hash_of("customer-7", EVENT) == 7_606_180_567_624_820_826


@given(key=st.text(min_size=1), event_id=st.uuids())
def test_key_hash_depends_on_the_key_alone_and_fits_its_column(key: str, event_id: UUID) -> None:
    found = key_hash_of(key, event_id)

    assert FIRST_KEY_HASH <= found < 1 << 63
    assert found == key_hash_of(key, EVENT) != key_hash_of(key + "x", event_id)


@given(event_id=st.uuids())
def test_key_hash_of_an_empty_key_depends_on_the_event(event_id: UUID) -> None:
    assert FIRST_KEY_HASH <= key_hash_of("", event_id) < 1 << 63
    assert key_hash_of("", event_id) == key_hash_of("", event_id)
    assert key_hash_of("", EVENT) != key_hash_of("", UUID(int=EVENT.int + 1))
