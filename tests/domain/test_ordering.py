"""Which deliveries wait for one another."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from hookline_service.domain.ordering import FIRST_KEY_HASH, key_hash_of

EVENT = UUID("01933b6a-7000-7000-8000-000000000001")


def test_a_key_has_the_hash_that_is_stored_for_it() -> None:
    """Rows of another version of this service name it so."""
    assert key_hash_of("customer-7", EVENT) == 7_606_180_567_624_820_826


@given(key=st.text(min_size=1), event_id=st.uuids())
def test_it_is_of_the_key_alone_and_fits_its_column(key: str, event_id: UUID) -> None:
    found = key_hash_of(key, event_id)

    assert FIRST_KEY_HASH <= found < 1 << 63
    assert found == key_hash_of(key, EVENT) != key_hash_of(key + "x", event_id)


@given(event_id=st.uuids())
def test_without_a_key_it_is_of_the_event(event_id: UUID) -> None:
    assert FIRST_KEY_HASH <= key_hash_of("", event_id) < 1 << 63
    assert key_hash_of("", event_id) == key_hash_of("", event_id)
    assert key_hash_of("", EVENT) != key_hash_of("", UUID(int=EVENT.int + 1))
