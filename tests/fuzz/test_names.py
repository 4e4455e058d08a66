"""Names and page tokens: what is accepted is written in one way only, and nothing is forged."""

from __future__ import annotations

import base64
import re
import string
from uuid import UUID

import pytest
from hypothesis import strategies as st

from hookline_service.api.conversion.names import tenant_and_id_in, tenant_and_uuid_in, tenant_id_in
from hookline_service.api.conversion.paging import Pages
from hookline_service.domain.errors import Violation
from hookline_service.domain.ids import format_type_id, parse_type_id
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import (
    check_event_type,
    check_id,
    check_key,
    check_pattern,
    parse_name,
)
from tests.fuzz.mutation import corpus, edited, fuzz

SEEDS = corpus("names")
TOKENS = [
    "tenants/", "/events/", "/subscriptions/", "/deliveries/", "evt_", "dlv_", "-", "/", "//",
    ".", "..",
    ".*", "*", "_", "\x00", "\n", " ", "%2f", "A", "0", "\u0661", "\u0130", "\u017f",
    "\ud800", "a" * 64,
]  # fmt: skip
NAMES = edited(SEEDS, TOKENS)


@fuzz({"text": SEEDS}, text=NAMES)
def test_accepted_name_is_ascii_of_bounded_length(text: str) -> None:
    for check, grammar, length in (
        (check_id, r"[a-z][a-z0-9-]*", 63),
        (check_event_type, r"[A-Za-z0-9_.-]+", 128),
        (check_pattern, r"[A-Za-z0-9_.*-]+", 128),
        (check_key, r"[ -~]+", 255),
    ):
        problem = check(text)
        assert (problem is None) or problem.isprintable()
        if problem is None:
            assert re.fullmatch(grammar, text)
            assert len(text) <= length
    if check_event_type(text) is None:
        assert check_pattern(text) is None
        assert "" not in text.split(".")


@fuzz({"text": SEEDS}, text=NAMES)
def test_parsed_name_is_formatted_unchanged(text: str) -> None:
    """Else one resource would have two names, and what is allowed for one be done to the other."""
    for prefix, collection in (("evt", "events"), ("dlv", "deliveries")):
        violations: list[Violation] = []
        tenant, uuid = tenant_and_uuid_in(text, collection, prefix, violations)
        if not violations:
            assert text == f"tenants/{tenant}/{collection}/{format_type_id(prefix, uuid)}"
    violations = []
    tenant, own = tenant_and_id_in(text, "subscriptions", violations, across=True)
    if not violations:
        assert text == f"tenants/{tenant}/subscriptions/{own}"
    violations = []
    tenant = tenant_id_in(text, violations)
    if not violations:
        assert text == f"tenants/{tenant}"
        assert tenant != "-"
    assert all(violation.description.isprintable() for violation in violations)
    assert parse_name(text, "tenants") is None or text.count("/") == 1


@fuzz(text=edited(["evt_01jdc6cqsyfz8snxvzxvqf9h5b", "evt_7zzzzzzzzzzzzzzzzzzzzzzzzz"], TOKENS))
def test_id_has_one_spelling(text: str) -> None:
    uuid = parse_type_id("evt", text)
    assert uuid is None or format_type_id("evt", uuid) == text


@fuzz(number=st.integers(0, (1 << 128) - 1))
def test_every_uuid_has_an_id(number: int) -> None:
    assert parse_type_id("evt", format_type_id("evt", UUID(int=number))) == UUID(int=number)


PAGES = Pages(b"the key of all nodes", Limits())
BINDING = ("ListEvents", "acme")
TOKEN_SEEDS = [PAGES.token(bytes(range(size)), BINDING) for size in (1, 2, 3, 16, 24, 40)]
TOKEN_TOKENS = [
    "=",
    "==",
    "+",
    "/",
    "-",
    "_",
    "A",
    "B",
    " ",
    "\n",
    "\x00",
    "\u0661",
    "\ud800",
    "A" * 1_100,
]


@fuzz({"token": TOKEN_SEEDS}, token=edited(TOKEN_SEEDS, TOKEN_TOKENS))
def test_only_an_issued_page_token_is_accepted(token: str) -> None:
    violations: list[Violation] = []
    page = PAGES.read(0, token, BINDING, violations)
    if token in {*TOKEN_SEEDS, ""}:
        assert violations == []
        return
    assert [violation.field for violation in violations] == ["page_token"]
    assert page.cursor == b""


@pytest.mark.parametrize("token", TOKEN_SEEDS)
def test_page_token_has_one_spelling(token: str) -> None:
    """Base64 has bits to spare at its end, and two alphabets."""
    others = {
        token[:place] + letter + token[place + size :]
        for place in range(len(token) + 1)
        for letter in string.ascii_letters + string.digits + "+/-_= \n"
        for size in (0, 1)
    }
    for other in others - {token}:
        violations: list[Violation] = []
        PAGES.read(0, other, BINDING, violations)
        assert len(violations) == 1, other


@fuzz(raw=st.binary(max_size=80), token=st.sampled_from(TOKEN_SEEDS))
def test_page_token_cannot_be_forged_without_the_key(raw: bytes, token: str) -> None:
    for forged in (base64.urlsafe_b64encode(raw).decode().rstrip("="), token):
        violations: list[Violation] = []
        pages = Pages(b"another key", Limits()) if forged == token else PAGES
        pages.read(0, forged, BINDING, violations)
        assert bool(violations) == bool(forged)
