"""Nothing in the repository depends on where it was made: no registry and no path of a machine."""

import pathlib
import re

import pytest

from tests.architecture.repository import files, text

REGISTRY = re.compile(
    r"pypi\.org|pythonhosted\.org|registry\.npmjs|npmjs\.org|proxy\.golang|sum\.golang|crates\.io/api"
    r"|repo1?\.maven|--(?:extra-)?index-url|^registry *=",
    re.MULTILINE,
)
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/\w")


def named(pattern: re.Pattern[str]) -> list[str]:
    """Every place in the repository where a pattern stands, as `path: text`."""
    return [f"{path}: {match[0]}" for path in files() for match in pattern.finditer(text(path))]


def test_no_file_names_a_registry() -> None:
    assert named(REGISTRY) == []


def test_no_file_names_a_machine_s_path() -> None:
    assert named(MACHINE_PATH) == []


@pytest.mark.parametrize(
    "line",
    [
        "https://files.python" + "hosted.org/x",
        '"resolved": "https://registry' + ".npm" + 'js.org/x"',
        "--index" + "-url x",
    ],
)
def test_an_address_would_be_seen(line: str) -> None:
    assert REGISTRY.search(line)


def test_a_path_would_be_seen_and_a_url_s_path_not() -> None:
    assert MACHINE_PATH.search("cd " + str(pathlib.PurePosixPath("/", "work", "main")))
    assert not MACHINE_PATH.search("https://receiver.example/" + "home/page")
