"""Run the sessions in the docs, unchanged, against a service."""

import pathlib
import re
from collections.abc import Iterator

import pytest

from tests.docs.pages import page, pages
from tests.docs.terminal import terminal
from tests.docs.transcript import Meanings
from tests.e2e.processes import Dev, data_directory, running_dev

pytestmark = pytest.mark.timeout(180)

RUN = ("README.md", "docs/operating.md", "docs/integrating.md", "docs/production.md")
RUN_ELSEWHERE = ("clients/python/README.md",)  # by tests/e2e/test_client_readme.py
SHOWN_LANGUAGES = {"toml", "yaml", "console", "python", "sh", "text", ""}


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    """The service that all pages run against."""
    with data_directory() as path, running_dev(path) as running:
        yield running
        assert running.stop() == 0


@pytest.mark.parametrize("path", RUN)
async def test_sessions_of_a_page_print_what_it_shows(
    path: str, dev: Dev, grpcurl: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with terminal(dev, grpcurl, tmp_path) as typed:
        await typed.follow(page(path))


def test_every_session_is_on_a_page_that_is_run() -> None:
    commands = re.compile(r"^\s*(?:\$ )?(?:grpcurl|hookline) ", re.MULTILINE)
    unrun = [
        block.place
        for each in pages()
        if str(each.path) not in RUN_ELSEWHERE
        for block in each.blocks()
        if (block.language in {"console", "python"} and str(each.path) not in RUN)
        or (block.language not in {"console", "sh"} and commands.search(block.text))
        or block.language not in SHOWN_LANGUAGES
    ]
    assert unrun == []


@pytest.mark.parametrize(
    "shown, printed, expected",
    [
        ("a\n", "a\n", True),
        ("a\n", "b\n", False),
        ("a\n", "a\nb\n", False),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nd\n", "a\nb\nc\n", False),
        ('"x": 1\n', '"x":   1\n\n', True),
        ("at 03:56:17.797, in 805 ms\n", "at 14:06:00.001, in 1.2 s\n", True),
        ("in 8.1 min\n", "in 8.1 s\n", False),
        ("accepted (93 ms ago)\n", "accepted (1.2 min ago)\n", True),
        ('"latency": "0.001s"\n', '"latency": "12.5s"\n', True),
        ('"timeout": "15s"\n', '"timeout": "16s"\n', False),
        ("made by … today\n", "made by hand today\n", True),
    ],
)
def test_output_comparison_ignores_times_and_durations(
    shown: str, printed: str, *, expected: bool
) -> None:
    assert Meanings({}).fits(shown, printed) is expected


def test_id_is_bound_at_its_first_appearance() -> None:
    shown, real = "evt_" + "0" * 26, "evt_" + "1" * 26
    meanings = Meanings({"50051": "4321"})
    assert not meanings.fits(f"{shown} {shown}\n", f"{real} evt_{'2' * 26}\n")
    assert meanings.fits(f"{shown} {shown}\n", f"{real} {real}\n")
    assert meanings.real(f"look 127.0.0.1:50051 {shown}") == f"look 127.0.0.1:4321 {real}"
    assert not meanings.fits(f"{shown}\n", f"evt_{'2' * 26}\n")
