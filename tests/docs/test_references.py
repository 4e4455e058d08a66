"""What the documents name exists: links, files, tests, RPCs. What they promise, a test holds."""

import ast
import pathlib
import re
from fnmatch import fnmatch

import pytest

from hookline_service.api import unimplemented
from tests.architecture.repository import PACKAGE, ROOT, files, text, tree
from tests.docs.pages import Page, page, pages

GUARANTEES = page("docs/guarantees.md")
PROMISES, RULES = 16, 25
_TEST = re.compile(r"(tests/[\w/]+\.py)::(?:Test\w+::)?(test_\w+)")
_PATH = re.compile(r"(?:service|tests|docs|protos|clients|\.ci)/[\w./-]*[\w/]")
_LATER = "with a later version"
_FOREIGN = {
    "DISCARD", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_RESOURCE_ATTRIBUTES", "default_pool_size",
    "remote_apply", "schedstat", "synchronous_standby_names",
}  # fmt: skip
"""What pages name and nothing here reads by itself."""


def identify(each: Page) -> str:
    return str(each.path)


@pytest.mark.parametrize("each", pages(), ids=identify)
def test_links_lead_somewhere(each: Page) -> None:
    broken = []
    for link in each.links():
        path, _, anchor = link.partition("#")
        target = (ROOT / each.path.parent / path).resolve() if path else ROOT / each.path
        is_elsewhere = re.match(r"https?:", link) is not None
        leads_somewhere = is_elsewhere or (
            target.exists()
            and (not anchor or anchor in page(str(target.relative_to(ROOT))).anchors())
        )
        if not leads_somewhere:
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("each", pages(), ids=identify)
def test_paths_that_are_named_exist(each: Page) -> None:
    known = {str(path) for path in files()}
    folders = {str(parent) for path in files() for parent in path.parents}
    missing = [
        name
        for code in each.code()
        if "::" not in code and "*" not in code and "…" not in code and "NNNN" not in code
        for name in _PATH.findall(code)
        if name.rstrip("/") not in known | folders
        and f"{name.rstrip('/')}.py" not in known  # a module, named as it is imported
    ]
    assert missing == []


def test_words_of_code_that_are_named_exist() -> None:
    """Else a page would go on naming what was renamed. Decisions may: they are of their day."""
    kept = [path for path in files() if path.suffix not in {".binpb", ".md"}]
    code = "\n".join(text(path) for path in kept if path.parts[:2] != ("tests", "docs"))
    known = set(re.findall(r"[A-Za-z_]\w+", f"{code} {' '.join(map(str, kept))}"))
    known |= {re.sub(r"_([a-z])", lambda m: m[1].upper(), word) for word in known}
    unknown = {
        f"{each.path}: {word}"
        for each in pages()
        if each.path.parent.name != "adr"
        for code in each.code()
        for word in re.findall(r"(?<![\w…])[A-Za-z]\w{3,}(?![\w…*])", code)
        if word not in known and word not in _FOREIGN
    }
    assert unknown == set()


def functions_of(path: str) -> set[str]:
    """Every function that a file defines."""
    if not (ROOT / path).is_file():
        return set()
    module = tree(pathlib.PurePosixPath(path))
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(module) if isinstance(node, definitions)}


@pytest.mark.parametrize("each", pages(), ids=identify)
def test_tests_that_are_named_exist(each: Page) -> None:
    named = _TEST.findall(each.text)
    missing = [f"{path}::{name}" for path, name in named if name not in functions_of(path)]
    assert missing == []


@pytest.mark.parametrize(
    "heading, count", [("The promises", PROMISES), ("The rules of the data path", RULES)]
)
def test_each_promise_and_each_rule_is_held_by_a_test_or_comes_later(
    heading: str, count: int
) -> None:
    rows = GUARANTEES.table(heading)
    assert [int(row[0]) for row in rows] == list(range(1, count + 1))
    unheld = [row[0] for row in rows if not _TEST.search(row[-1]) and row[-1] != _LATER]
    assert unheld == []


def test_each_danger_at_each_boundary_is_held_by_a_test() -> None:
    security = page("docs/security.md")
    picture, *_ = (block.text for block in security.blocks())
    headings = re.findall(r"^## (\d\. .+)$", security.text, re.MULTILINE)
    assert [heading[0] for heading in headings] == sorted(set(re.findall(r"\d", picture)))
    rows = [row for heading in headings for row in security.table(heading)]
    assert len(rows) > 40
    assert [row[0] for row in rows if not (row[1] and _TEST.search(row[2]))] == []


def test_every_rule_says_where_in_the_code_it_is_kept() -> None:
    rows = GUARANTEES.table("The rules of the data path")
    assert [row[0] for row in rows if "service/" not in row[2]] == []


def test_every_test_that_is_named_alone_stands_in_a_table() -> None:
    """Else nobody would notice that a promise lost its test."""
    assert len(_TEST.findall(GUARANTEES.text)) >= PROMISES + RULES


def test_what_is_not_built_is_told_in_the_readme() -> None:
    _, _, below = page("README.md").text.partition("## What is not built yet\n")
    told = below.partition("\n## ")[0]
    refused = [
        name
        for kind in vars(unimplemented).values()
        if isinstance(kind, type) and kind.__module__ == unimplemented.__name__
        for name in vars(kind)
        if name[0].isupper()
    ]
    by_family = {"GetReplay", "ListReplays", "CancelReplay", "StartReplay"}
    assert "eplays" in told
    assert [n for n in refused if n not in by_family and f"`{n}`" not in told] == []
    built = {"PublishEvents", "SendTestEvent", "RetryDelivery", "ListEvents"}
    assert [name for name in re.findall(r"`([A-Z]\w+)`", told) if name in built] == []


def docstring_of(path: pathlib.PurePosixPath) -> str:
    return ast.get_docstring(tree(path)) or ""


def modules_of(folder: pathlib.PurePosixPath) -> set[str]:
    """The modules and packages directly in a package."""
    below = [path for path in files() if path.is_relative_to(folder) and path.suffix == ".py"]
    return {path.relative_to(folder).parts[0].removesuffix(".py") for path in below}


@pytest.mark.parametrize(
    "package",
    [
        "pipeline",
        *(
            f"pipeline/{name}"
            for name in (
                "actions", "coordination", "dispatch", "membership", "publishing", "upkeep",
            )
        ),
    ],
)  # fmt: skip
def test_the_pipeline_lists_its_modules_in_reading_order(package: str) -> None:
    folder = PACKAGE / package
    told = docstring_of(folder / "__init__.py")
    listed = re.findall(r"^ *([a-z_]+(?:, [a-z_]+)*)  ", told, re.MULTILINE)
    named = [name for line in listed for name in line.split(", ")]
    assert sorted(named) == sorted(modules_of(folder) - {"__init__"})


@pytest.mark.parametrize(
    "package", ["api", "api/middleware", "store", "store/embedded", "targets/http"]
)
def test_a_large_package_names_each_of_its_modules(package: str) -> None:
    folder = PACKAGE / package
    named = re.findall(r"`([\w*]+)`", docstring_of(folder / "__init__.py"))
    stems = modules_of(folder) - {"sql", "embedded"}
    unnamed = {stem for stem in stems if not any(fnmatch(stem, name) for name in named)}
    assert unnamed == {"__init__"}


def test_every_table_of_the_database_is_told_of() -> None:
    folder = pathlib.PurePosixPath("service/hookline_service/store/sql/migrations")
    scripts = "".join(text(path) for path in files() if path.parent == folder)
    made = set(re.findall(r"^CREATE TABLE (\w+)", scripts, re.MULTILINE))
    rows = page("docs/ARCHITECTURE.md").table("Storage")
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row[0])} == made


def test_the_changelog_is_kept_as_keepachangelog_says() -> None:
    text = page("CHANGELOG.md").text
    assert text.startswith("# Changelog\n")
    versions = re.findall(r"^## \[(\S+?)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    kinds = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
