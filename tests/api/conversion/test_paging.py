"""Page tokens and sizes: what was not made for this list, with this key, asks for nothing."""

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
    """The cursor in a token; None where it is refused."""
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
def test_a_token_gives_its_cursor_back(cursor: bytes, binding: tuple[str, ...]) -> None:
    assert read(PAGES, PAGES.token(cursor, binding), binding) == cursor


@given(cursors, bindings, bindings)
def test_a_token_is_bound_to_every_parameter(
    cursor: bytes, binding: tuple[str, ...], other: tuple[str, ...]
) -> None:
    token = PAGES.token(cursor, binding)
    assert (read(PAGES, token, other) is None) == (binding != other)


def test_parameters_cannot_be_shifted_into_one_another() -> None:
    token = PAGES.token(b"c", ("ab", "c"))
    assert read(PAGES, token, ("a", "bc")) is None
    assert read(PAGES, token, ("abc",)) is None


@given(cursors, st.data())
def test_a_token_that_was_touched_is_refused(cursor: bytes, data: st.DataObject) -> None:
    token = PAGES.token(cursor, BINDING)
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    forged = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    assert read(PAGES, forged) is None


@given(st.text(min_size=1))
def test_what_was_never_a_token_is_refused(text: str) -> None:
    assert read(PAGES, text) is None


def test_another_key_makes_other_tokens() -> None:
    token = PAGES.token(b"cursor", BINDING)
    assert read(Pages(b"another key", Limits()), token) is None
    assert read(Pages(b"the key of all nodes", Limits()), token) == b"cursor"


def test_sizes_have_a_default_and_a_ceiling() -> None:
    violations: list[Violation] = []
    sizes = {asked: PAGES.read(asked, "", (), violations) for asked in (0, 1, 1_000, 1_001)}
    assert sizes == {0: Page(50), 1: Page(1), 1_000: Page(1_000), 1_001: Page(1_000)}
    assert violations == []
    PAGES.read(-1, "", (), violations)
    assert [v.field for v in violations] == ["page_size"]


def test_a_page_is_cut_before_it_is_too_large_but_holds_one() -> None:
    pages = Pages(b"k", Limits(max_page_bytes=100))
    sizes = (40, 40, 40)
    messages = [BytesValue(value=bytes(size)) for size in sizes]
    assert pages.cut(messages) == messages[:2]
    assert pages.cut(messages[:2]) == messages[:2]
    huge = [BytesValue(value=bytes(500)), BytesValue()]
    assert pages.cut(huge) == huge[:1]
    assert list(pages.cut([])) == []
