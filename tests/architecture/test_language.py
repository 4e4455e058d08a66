"""The checker of banned words finds them in code, contracts, statements and pages."""

import pathlib

import pytest

from tests.architecture.language import Finding, Language
from tests.architecture.repository import ROOT

LANGUAGE = Language(
    {"wombat": "the noun", "quokka": "the verb"}, ("docs/records/", "tests/table.toml")
)


def words(text: str) -> list[str]:
    """Return the banned words of a text."""
    return [finding.word for finding in LANGUAGE.findings(text)]


@pytest.mark.parametrize(
    "text",
    [
        "def close_wombat() -> None: ...",
        "class WombatError(Exception): ...",
        "const lastWombat = 1;",
        "class HTTPWombat: ...",
        "WOMBAT_MAX = 1",
        "lane.close()  # the wombat closes it",
        "// A wombat that is disabled.\nmessage Subscription {}",
        "-- due: each wombat\nSELECT 1",
        "# A page\n\nThe wombat's lease ends.",
        "echo 'setup: no wombat here'",
    ],
    ids=[
        *("snake case", "Pascal case", "camel case", "after an acronym", "constant", "comment"),
        *("proto", "SQL", "Markdown", "shell"),
    ],
)
def test_a_banned_word_is_found(text: str) -> None:
    assert words(text) == ["wombat"]


@pytest.mark.parametrize("text", ["wombats", "awombat", "WOMBATS_MAX", "wom_bat"])
def test_a_word_that_only_contains_a_banned_one_is_not_found(text: str) -> None:
    assert words(text) == []


def test_a_finding_has_its_line_and_what_to_write_instead() -> None:
    assert list(LANGUAGE.findings("one\nquokka wombat wombat\n")) == [
        Finding(2, "quokka", "the verb"),
        Finding(2, "wombat", "the noun"),
    ]


@pytest.mark.parametrize(
    "comment, found",
    [
        ("# allow-word: wombat (an animal)", []),
        ("-- allow-word: wombat (an animal)", []),
        ("<!-- allow-word: wombat (an animal) -->", []),
        ("# allow-word: wombat", ["wombat"]),
        ("# allow-word: wombat ()", ["wombat"]),
        ("# allow-word: quokka (an animal)", ["wombat"]),
    ],
)
def test_a_line_keeps_the_word_that_it_names_only_with_a_reason(
    comment: str, found: list[str]
) -> None:
    assert words(f"wombat {comment}") == found


@pytest.mark.parametrize(
    "path, checked",
    [
        ("service/hookline_service/store/lanes.py", True),
        ("docs/ARCHITECTURE.md", True),
        ("docs/records/0001-a.md", False),
        ("tests/table.toml", False),
        ("tests/table.toml.md", True),
        ("clients/python/hookline/v1/event_pb2.py", False),
    ],
)
def test_records_and_generated_code_are_not_checked(path: str, *, checked: bool) -> None:
    assert LANGUAGE.checks(pathlib.PurePosixPath(path)) == checked


def test_every_skipped_path_exists() -> None:
    assert [path for path in Language.read().skipped if not (ROOT / path).exists()] == []
