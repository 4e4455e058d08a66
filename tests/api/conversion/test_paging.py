"""Page tokens and sizes: a token is valid only for its list, its parameters and its key."""

from __future__ import annotations

import base64

from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import given
from hypothesis import strategies as st

from hookline_service.api.conversion.paging import Page, Pages
from hookline_service.domain.errors import Reason, Violation
from hookline_service.domain.limits import Limits

PAGES = Pages(b"the key of all nodes", Limits())
BINDING = ("ListEvents", "acme")

cursors = st.binary(min_size=1, max_size=100)
bindings = st.lists(st.text(), max_size=4).map(tuple)


def read(pages: Pages, token: str, binding: tuple[str, ...] = BINDING) -> bytes | None:
    """Return the cursor in a token; None if the token is refused."""
    violations: list[Violation] = []
    page = pages.read(0, token, binding, violations)
    if violations:
        assert [(v.field, v.reason) for v in violations] == [
            ("page_token", Reason.PAGE_TOKEN_INVALID)
        ]
        assert page.cursor == b""
        return None
    return page.cursor


@given(cursors, bindings)
def test_token_round_trips_its_cursor(cursor: bytes, binding: tuple[str, ...]) -> None:
    assert read(PAGES, PAGES.token(cursor, binding), binding) == cursor


@given(cursors, bindings, bindings)
def test_a_token_is_bound_to_every_parameter(
    cursor: bytes, binding: tuple[str, ...], other: tuple[str, ...]
) -> None:
    token = PAGES.token(cursor, binding)
    assert (read(PAGES, token, other) is None) == (binding != other)


def test_moving_text_between_parameters_invalidates_a_token() -> None:
    token = PAGES.token(b"c", ("ab", "c"))
    assert read(PAGES, token, ("a", "bc")) is None
    assert read(PAGES, token, ("abc",)) is None


@given(cursors, st.data())
def test_modified_token_is_refused(cursor: bytes, data: st.DataObject) -> None:
    token = PAGES.token(cursor, BINDING)
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    forged = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    assert read(PAGES, forged) is None


@given(st.text(min_size=1))
def test_arbitrary_text_is_refused_as_a_token(text: str) -> None:
    assert read(PAGES, text) is None


def test_tokens_depend_on_the_key() -> None:
    token = PAGES.token(b"cursor", BINDING)
    assert read(Pages(b"another key", Limits()), token) is None
    assert read(Pages(b"the key of all nodes", Limits()), token) == b"cursor"


def test_page_size_has_a_default_and_a_maximum() -> None:
    violations: list[Violation] = []
    sizes = {asked: PAGES.read(asked, "", (), violations) for asked in (0, 1, 1_000, 1_001)}
    assert sizes == {0: Page(50), 1: Page(1), 1_000: Page(1_000), 1_001: Page(1_000)}
    assert violations == []
    PAGES.read(-1, "", (), violations)
    assert [v.field for v in violations] == ["page_size"]


def test_page_is_limited_in_bytes_but_has_at_least_one_item() -> None:
    pages = Pages(b"k", Limits(max_page_bytes=100))
    sizes = (40, 40, 40)
    messages = [BytesValue(value=bytes(size)) for size in sizes]
    assert pages.cut(messages) == messages[:2]
    assert pages.cut(messages[:2]) == messages[:2]
    huge = [BytesValue(value=bytes(500)), BytesValue()]
    assert pages.cut(huge) == huge[:1]
    assert list(pages.cut([])) == []
