"""The grammar of names: valid and invalid texts of each kind, and the sentence of a refusal."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline_service.domain.names import (
    CLOUDEVENTS_CORE,
    check_attribute_name,
    check_content_type,
    check_event_type,
    check_id,
    check_key,
    check_pattern,
    check_text,
    delivery_name,
    event_name,
    event_type_name,
    parse_name,
    subscription_name,
    tenant_name,
)

Check = Callable[[str], str | None]

GOOD: dict[Check, list[str]] = {
    check_id: ["a", "acme", "a-b", "a1", "a-", "a" * 63, "default"],
    check_event_type: ["order", "order.created", "Order_2.created-v1", "1.2", "-", "a" * 128],
    check_pattern: ["*", "order", "order.*", "order.created.*", "hookline.*", "a" * 126 + ".*"],
    check_attribute_name: ["a", "tenantid", "0", "a" * 64],
    check_key: ["k", " ", "a b/c~!", "~" * 255],
    check_content_type: [
        "text/plain", "application/vnd.acme+json", "text/plain; charset=utf-8",
        'multipart/mixed;boundary="a b"', "text/plain;a=b ; c=d",
    ],
}  # fmt: skip
BAD: dict[Check, list[str]] = {
    check_id: [
        "", "-", "-a", "1a", "A", "aA", "a_b", "a.b", "a/b", "a b", "a" * 64, "\xe4", "a\n",
        "a\x00", "\u0660a", "a\u0660",
    ],
    check_event_type: [
        "", ".", "a.", ".a", "a..b", "a b", "a/b", "a:b", "*", "a.*", "a" * 129, "\xe4", "a\n",
        "a.b\n", "a\x00", "a\u0660",
    ],
    check_pattern: [
        "", "*.created", "order*", "order.*.eu", "**", "order.**", ".*", "*.*", "order.",
        "a" * 127 + ".*", "order.*\n",
    ],
    check_attribute_name: [
        "", "A", "a_b", "a-b", "a" * 65, "\xe4", "a\n", "\u0660", *sorted(CLOUDEVENTS_CORE),
    ],
    check_key: ["", "\x00", "\n", "a\n", "\x7f", "\xe4", "k" * 256, "\t"],
    check_content_type: [
        "", "text", "text/", "/plain", "text/plain;", "text/plain; a", "text/plain\r\nx: y",
        "text plain/x", 'text/plain;a="\r\n"', "a/" + "b" * 254, "text/pl\xe4in", "text/plain\n",
    ],
}  # fmt: skip


def cases(table: dict[Check, list[str]]) -> list[tuple[Check, str]]:
    """Return each text of a table with its check."""
    return [(check, text) for check, texts in table.items() for text in texts]


@pytest.mark.parametrize("check, text", cases(GOOD))
def test_valid_text_is_accepted(check: Check, text: str) -> None:
    assert check(text) is None


@pytest.mark.parametrize("check, text", cases(BAD))
def test_invalid_text_is_refused_with_a_sentence(check: Check, text: str) -> None:
    problem = check(text)
    assert problem
    assert problem.startswith(("must ", "is "))


@given(st.sampled_from(list(GOOD)), st.text())
def test_accepted_text_is_printable_ascii(check: Check, text: str) -> None:
    """Printable ASCII is safe in headers, logs and Postgres."""
    if check(text) is None:
        assert text.isascii()
        assert text.isprintable()


@given(st.text(min_size=1))
def test_accepted_pattern_without_its_star_is_a_valid_event_type(text: str) -> None:
    if check_pattern(text) is None and text != "*":
        assert check_event_type(text.removesuffix(".*")) is None


def test_free_text_is_bounded_and_without_nul() -> None:
    assert check_text("\xe4\n", 2) is None
    assert "limit is 2" in (check_text("abc", 2) or "")
    assert "U+0000" in (check_text("a\x00", 2) or "")


def test_names_are_formatted_and_parsed() -> None:
    assert tenant_name("acme") == "tenants/acme"
    assert event_type_name("a.b") == "eventTypes/a.b"
    for name, collection in (
        (subscription_name("acme", "x"), "subscriptions"),
        (event_name("acme", "x"), "events"),
        (delivery_name("acme", "x"), "deliveries"),
    ):
        assert name == f"tenants/acme/{collection}/x"
        assert parse_name(name, "tenants", collection) == ("acme", "x")


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "tenants", "tenants/", "tenants/a", "tenants/a/", "tenants/a/events",
        "tenants/a/events/", "tenants//events/b", "/tenants/a/events/b", "tenants/a/events/b/",
        "tenants/a/events/b/c", "Tenants/a/events/b", "tenants/a/deliveries/b", "events/b",
        "tenants/a//events/b",
    ],
)  # fmt: skip
def test_malformed_name_is_not_parsed(name: str) -> None:
    assert parse_name(name, "tenants", "events") is None
