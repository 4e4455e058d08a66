"""The layout of the repository. A new folder at these levels is a decision, made here."""

import pathlib
import re

from tests.architecture.repository import ROOT, files, text

TOP_LEVEL = {
    ".ci",
    ".editorconfig",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "buf.gen.yaml",
    "buf.yaml",
    "clients",
    "deploy",
    "docs",
    "protos",
    "pyproject.toml",
    "requirements",
    "service",
    "tests",
}
PACKAGES = {
    "api",
    "app",
    "cli",
    "config",
    "domain",
    "identity",
    "pipeline",
    "schema",
    "store",
    "supervisor",
    "targets",
    "telemetry",
}
TEST_FOLDERS = PACKAGES | {
    "architecture",
    "bench",
    "client",
    "deploy",
    "docs",
    "e2e",
    "faults",
    "fuzz",
    "hostile",
    "model",
    "protos",
    "scenarios",
}
CLIENT = pathlib.PurePosixPath("clients/python/hookline")
# Names that say nothing about their content, and so attract any.
NAMELESS = {
    "base",
    "common",
    "core",
    "helper",
    "helpers",
    "manager",
    "misc",
    "shared",
    "util",
    "utils",
}


def test_the_top_level_has_the_listed_entries() -> None:
    assert {path.parts[0] for path in files()} <= TOP_LEVEL


def test_the_service_consists_of_the_listed_packages() -> None:
    inside = {path.parts[2] for path in files() if path.is_relative_to("service/hookline_service")}
    assert {pathlib.PurePath(name).stem for name in inside} <= PACKAGES | {
        "__init__",
        "__main__",
        "py",
    }


def test_tests_mirror_the_packages() -> None:
    folders = {
        path.parts[1] for path in files() if path.parts[0] == "tests" and len(path.parts) > 2
    }
    assert folders <= TEST_FOLDERS


def test_no_file_or_folder_has_a_meaningless_name() -> None:
    nameless = [
        path for path in files() if NAMELESS & {pathlib.PurePath(part).stem for part in path.parts}
    ]
    assert nameless == []


def test_each_decision_has_a_number_of_its_own_and_says_it() -> None:
    decisions = [path for path in files() if path.parent == pathlib.PurePosixPath("docs/adr")]
    names = [re.fullmatch(r"(\d{4})-[a-z0-9]+(-[a-z0-9]+)*\.md", path.name) for path in decisions]
    numbers = [match and int(match[1]) for match in names]
    assert None not in numbers
    assert len(set(numbers)) == len(numbers)
    for path in decisions:
        assert re.match(rf"# (ADR )?0*{int(path.name[:4])}\b", text(path)), (
            f"{path}: its title has another number"
        )


def test_every_make_target_that_the_docs_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (str(path), target)
        for path in files()
        if path.suffix == ".md"
        for target in re.findall(r"(?:`|^|&& )make ([a-z]+(?:-[a-z]+)*)", text(path), re.MULTILINE)
    }
    assert {target for _, target in named} >= {"lock"}
    assert {(path, target) for path, target in named if target not in targets} == set()


def test_every_folder_of_code_that_ships_is_a_package() -> None:
    shipped = {
        path for path in files() if path.parts[0] == "service" or path.is_relative_to(CLIENT)
    }
    folders = {path.parent for path in shipped if path.suffix == ".py"}
    assert [str(folder) for folder in folders if folder / "__init__.py" not in shipped] == []
