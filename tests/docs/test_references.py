"""Links, files, tests, RPCs and identifiers that the docs name exist; each promise has a test."""

import ast
import pathlib
import re
from fnmatch import fnmatch

import pytest

from hookline_service.api import unimplemented
from tests.architecture.repository import PACKAGE, ROOT, files, text, tree
from tests.docs.pages import Page, page, pages

GUARANTEES = page("docs/guarantees.md")
PROMISES, RULES, QUESTIONS = 16, 25, 10
_TEST = re.compile(r"(tests/[\w/]+\.py)::(?:Test\w+::)?(test_\w+)")
_PARTS = re.compile(r"`(service/[\w./]+)` \(([\w, ]+)\)")
"""A file, and the names of functions or SQL statements in it."""
_PATH = re.compile(r"(?:service|tests|docs|protos|clients|\.ci)/[\w./-]*[\w/]")
_LATER = "with a later version"
_FOREIGN = {
    "DISCARD", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_RESOURCE_ATTRIBUTES", "default_pool_size",
    "remote_apply", "schedstat", "synchronous_standby_names",
}  # fmt: skip
"""Identifiers of other programs."""


def identify(each: Page) -> str:
    return str(each.path)


@pytest.mark.parametrize("each", pages(), ids=identify)
def test_link_targets_exist(each: Page) -> None:
    broken = []
    for link in each.links():
        path, _, anchor = link.partition("#")
        target = (ROOT / each.path.parent / path).resolve() if path else ROOT / each.path
        is_elsewhere = re.match(r"https?:", link) is not None
        exists = is_elsewhere or (
            target.exists()
            and (not anchor or anchor in page(str(target.relative_to(ROOT))).anchors())
        )
        if not exists:
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("each", pages(), ids=identify)
def test_named_paths_exist(each: Page) -> None:
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


def test_named_identifiers_exist() -> None:
    """Detect names that the code no longer has. ADRs are exempt: they describe their time."""
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
    """Return the names of all functions in a file."""
    if not (ROOT / path).is_file():
        return set()
    module = tree(pathlib.PurePosixPath(path))
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(module) if isinstance(node, definitions)}


@pytest.mark.parametrize("each", pages(), ids=identify)
def test_named_tests_exist(each: Page) -> None:
    named = _TEST.findall(each.text)
    missing = [f"{path}::{name}" for path, name in named if name not in functions_of(path)]
    assert missing == []


@pytest.mark.parametrize(
    "heading, count", [("The promises", PROMISES), ("The rules of the data path", RULES)]
)
def test_each_promise_and_each_rule_has_a_test(heading: str, count: int) -> None:
    rows = GUARANTEES.table(heading)
    assert [int(row[0]) for row in rows] == list(range(1, count + 1))
    untested = [row[0] for row in rows if not _TEST.search(row[-1]) and row[-1] != _LATER]
    assert untested == []


def test_each_threat_at_each_boundary_has_a_test() -> None:
    security = page("docs/security.md")
    diagram, *_ = (block.text for block in security.blocks())
    headings = re.findall(r"^## (\d\. .+)$", security.text, re.MULTILINE)
    assert [heading[0] for heading in headings] == sorted(set(re.findall(r"\d", diagram)))
    rows = [row for heading in headings for row in security.table(heading)]
    assert len(rows) > 40
    assert [row[0] for row in rows if not (row[1] and _TEST.search(row[2]))] == []


def test_each_rule_names_its_code() -> None:
    rows = GUARANTEES.table("The rules of the data path")
    assert [row[0] for row in rows if "service/" not in row[2]] == []


def test_functions_and_statements_named_in_guarantees_exist() -> None:
    named = _PARTS.findall(GUARANTEES.text)
    assert len(named) >= RULES
    assert [
        (path, name)
        for path, names in named
        for name in names.split(", ")
        if not re.search(rf"\b{name}\b", text(pathlib.PurePosixPath(path)))
    ] == []


def test_guarantees_name_a_test_for_each_promise_and_rule() -> None:
    assert len(_TEST.findall(GUARANTEES.text)) >= PROMISES + RULES


def test_readme_lists_every_unimplemented_rpc() -> None:
    _, _, below = page("README.md").text.partition("## What is not built yet\n")
    listed = below.partition("\n## ")[0]
    refused = [
        name
        for kind in vars(unimplemented).values()
        if isinstance(kind, type) and kind.__module__ == unimplemented.__name__
        for name in vars(kind)
        if name[0].isupper()
    ]
    by_family = {"GetReplay", "ListReplays", "CancelReplay", "StartReplay"}
    assert "eplays" in listed
    assert [n for n in refused if n not in by_family and f"`{n}`" not in listed] == []
    built = {"PublishEvents", "SendTestEvent", "RetryDelivery", "ListEvents"}
    assert [name for name in re.findall(r"`([A-Z]\w+)`", listed) if name in built] == []


def test_each_question_of_the_architecture_is_answered_by_one_existing_file() -> None:
    rows = page("docs/ARCHITECTURE.md").table("Where to find")
    answers = {question: re.findall(r"`([^`]+)`", file) for question, file, _ in rows}
    assert len(answers) >= QUESTIONS
    assert [
        question
        for question, named in answers.items()
        if len(named) != 1 or not (ROOT / named[0]).is_file()
    ] == []


def docstring_of(path: pathlib.PurePosixPath) -> str:
    return ast.get_docstring(tree(path)) or ""


def modules_of(folder: pathlib.PurePosixPath) -> set[str]:
    """Return the modules and packages directly in a package."""
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
def test_pipeline_packages_list_their_modules(package: str) -> None:
    folder = PACKAGE / package
    docstring = docstring_of(folder / "__init__.py")
    listed = re.findall(r"^ *([a-z_]+(?:, [a-z_]+)*)  ", docstring, re.MULTILINE)
    named = [name for line in listed for name in line.split(", ")]
    assert sorted(named) == sorted(modules_of(folder) - {"__init__"})


@pytest.mark.parametrize(
    "package", ["api", "api/middleware", "store", "store/embedded", "targets/http"]
)
def test_large_packages_name_each_of_their_modules(package: str) -> None:
    folder = PACKAGE / package
    named = re.findall(r"`([\w*]+)`", docstring_of(folder / "__init__.py"))
    stems = modules_of(folder) - {"sql", "embedded"}
    unnamed = {stem for stem in stems if not any(fnmatch(stem, name) for name in named)}
    assert unnamed == {"__init__"}


def test_changelog_follows_keep_a_changelog() -> None:
    text = page("CHANGELOG.md").text
    assert text.startswith("# Changelog\n")
    versions = re.findall(r"^## \[(\S+?)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    kinds = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
