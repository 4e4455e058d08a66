"""Identifiers against the vectors of RFC 9562 and of the TypeID specification."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline_service.domain.ids import (
    BUCKET_COUNT,
    MAX_FAN_OUT,
    bucket_of,
    bucket_of_delivery,
    delivery_id_of,
    delivery_range_of,
    first_uuid_of,
    format_type_id,
    make_uuid7,
    parse_type_id,
    unix_ms_of,
)

UNIX_MS = st.integers(0, (1 << 48) - 1)
RANDOM = st.integers(0, (1 << 74) - 1)
EVENTS = st.builds(make_uuid7, UNIX_MS, RANDOM)
INDEXES = st.integers(0, MAX_FAN_OUT - 1)
BUCKETS = st.integers(0, BUCKET_COUNT - 1)

TYPE_IDS = {  # https://github.com/jetify-com/typeid, spec/valid.yml
    "00000000000000000000000000": "00000000-0000-0000-0000-000000000000",
    "00000000000000000000000001": "00000000-0000-0000-0000-000000000001",
    "0000000000000000000000000a": "00000000-0000-0000-0000-00000000000a",
    "0000000000000000000000000g": "00000000-0000-0000-0000-000000000010",
    "00000000000000000000000010": "00000000-0000-0000-0000-000000000020",
    "7zzzzzzzzzzzzzzzzzzzzzzzzz": "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "0123456789abcdefghjkmnpqrs": "0110c853-1d09-52d8-d73e-1194e95b5f19",
    "01h455vb4pex5vsknk084sn02q": "01890a5d-ac96-774b-bcce-b302099a8057",
}
NO_TYPE_IDS = [  # and spec/invalid.yml, of its kinds
    "",
    "evt",
    "evt_",
    "_00000000000000000000000000",
    "00000000000000000000000000",
    "dlv_00000000000000000000000000",
    "EVT_00000000000000000000000000",
    "evt_1234567890123456789012345",
    "evt_123456789012345678901234567",
    "evt_8zzzzzzzzzzzzzzzzzzzzzzzzz",
    "evt_zzzzzzzzzzzzzzzzzzzzzzzzzz",
    "evt_1234567890123456789012345 ",
    "evt_0123456789ABCDEFGHJKMNPQRS",
    "evt_123456789-123456789-123456",
    "evt_ooooooiiiiiiuuuuuuulllllll",
    "evt_i23456789ol23456789oi23456",
    "evt__0000000000000000000000000",
    "evt_evt_0000000000000000000000",
    "evt_0000000000000000000000000\u0660",
    "evt-00000000000000000000000000",
]


def test_uuid7_matches_the_example_of_rfc_9562() -> None:
    """RFC 9562, appendix A.6."""
    made = make_uuid7(1_645_557_742_000, 0xCC3 << 62 | 0x18C4DC0C0C07398F)
    assert made == UUID("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")


@given(UNIX_MS, RANDOM)
def test_uuid7_contains_its_time(unix_ms: int, random: int) -> None:
    made = make_uuid7(unix_ms, random)
    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert unix_ms_of(made) == unix_ms
    assert first_uuid_of(unix_ms) <= made
    if unix_ms + 1 < 1 << 48:
        assert made < first_uuid_of(unix_ms + 1)


@given(UNIX_MS, RANDOM, RANDOM)
def test_different_random_bits_give_different_ids(unix_ms: int, one: int, other: int) -> None:
    assert (make_uuid7(unix_ms, one) == make_uuid7(unix_ms, other)) is (one == other)


@pytest.mark.parametrize("letters, uuid", TYPE_IDS.items())
def test_type_id_round_trips(letters: str, uuid: str) -> None:
    assert format_type_id("prefix", UUID(uuid)) == f"prefix_{letters}"
    assert parse_type_id("prefix", f"prefix_{letters}") == UUID(uuid)


@pytest.mark.parametrize("text", NO_TYPE_IDS)
def test_invalid_type_ids_are_rejected(text: str) -> None:
    assert parse_type_id("evt", text) is None


@given(st.text())
def test_parsing_accepts_only_formatted_ids(text: str) -> None:
    for candidate in (text, f"evt_{text}"):
        value = parse_type_id("evt", candidate)
        assert value is None or format_type_id("evt", value) == candidate


@given(st.uuids(), st.uuids())
def test_type_ids_sort_as_their_uuids(one: UUID, other: UUID) -> None:
    assert parse_type_id("evt", format_type_id("evt", one)) == one
    assert (format_type_id("evt", one) < format_type_id("evt", other)) is (one < other)


@given(EVENTS, INDEXES, BUCKETS)
def test_delivery_id_contains_its_event_and_bucket(event_id: UUID, index: int, bucket: int) -> None:
    delivery_id = delivery_id_of(event_id, index, bucket)
    first, last = delivery_range_of(event_id)
    assert first <= delivery_id <= last
    assert bucket_of_delivery(delivery_id) == bucket
    assert delivery_id.version == 7
    assert unix_ms_of(delivery_id) == unix_ms_of(event_id), "both fall into the same day"


@given(EVENTS, st.sets(st.tuples(INDEXES, BUCKETS), max_size=50))
def test_deliveries_of_an_event_have_different_ids(
    event_id: UUID, pairs: set[tuple[int, int]]
) -> None:
    assert len({delivery_id_of(event_id, *pair) for pair in pairs}) == len(pairs)


@given(EVENTS, EVENTS)
def test_ranges_of_two_events_are_equal_or_disjoint(one: UUID, other: UUID) -> None:
    (first, last), (other_first, other_last) = delivery_range_of(one), delivery_range_of(other)
    assert (first, last) == (other_first, other_last) or last < other_first or other_last < first


@given(st.uuids())
def test_buckets_are_within_bounds(uid: UUID) -> None:
    assert 0 <= bucket_of(uid) < BUCKET_COUNT


def test_the_bucket_of_a_subscription_never_changes() -> None:
    """Pending rows store the bucket: with another hash no node would find them."""
    assert bucket_of(UUID("01890a5d-ac96-774b-bcce-b302099a8057")) == 4
    assert bucket_of(UUID(int=0)) == 76


def test_buckets_are_evenly_distributed() -> None:
    """Of 25,600 subscriptions made one after the other, none of 256 buckets has far from 100."""
    counts = [0] * BUCKET_COUNT
    for n in range(100 * BUCKET_COUNT):
        counts[bucket_of(make_uuid7(1_700_000_000_000 + n, n))] += 1
    assert min(counts) > 50
    assert max(counts) < 150
