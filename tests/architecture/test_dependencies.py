"""Dependencies: imported is declared, declared is argued, argued is locked."""

import ast
import importlib.metadata
import pathlib
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.architecture.repository import ROOT, python_files, text, tree

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLIENT = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text())


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by their package's name."""
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


RUNTIME = requirements(PROJECT["project"]["dependencies"])
EXTRAS = requirements(
    [line for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines]
)
CLIENT_RUNTIME = requirements(CLIENT["project"]["dependencies"])
CLIENT_EXTRAS = requirements(
    [line for lines in CLIENT["project"]["optional-dependencies"].values() for line in lines]
)
DEV = requirements(PROJECT["dependency-groups"]["dev"])
CODEGEN = requirements(PROJECT["dependency-groups"]["codegen"])
DEPLOY = requirements(PROJECT["dependency-groups"]["deploy"])
AUDIT = requirements(PROJECT["dependency-groups"]["audit"])
REGISTERED = {name: line for name, line in RUNTIME.items() if name != "hookline"}
"""What a package index has. The client is installed from this checkout, and no lock names it."""


# A namespace that several distributions share.
GOOGLE = {"google.protobuf": ["protobuf"], "google.rpc": ["googleapis-common-protos"]}


def locked(lock: str) -> dict[str, str]:
    """The versions that a lock pins, by package."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def imported(path: pathlib.PurePosixPath) -> set[str]:
    """The top-level names that a file imports, from wherever in it; two levels of `google`."""
    modules: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    levels = {module: 2 if module.startswith("google.") else 1 for module in modules}
    names = {".".join(module.split(".")[:n]) for module, n in levels.items()}
    return names - sys.stdlib_module_names


def test_every_dependency_has_a_line_that_argues_it_and_every_line_a_dependency() -> None:
    page = text(pathlib.PurePosixPath("docs/dependencies.md"))
    rows = re.findall(r"^\| ([a-z0-9-]+) \|(?: [^|\s][^|]* \|){3}$", page, re.MULTILINE)
    argued = [name for name in rows if name != "package"]
    assert sorted(argued) == sorted(
        ({*RUNTIME, *EXTRAS, *DEV, *CODEGEN, *DEPLOY, *AUDIT}) - {"hookline"}
    )


@pytest.mark.parametrize(
    "lock, wanted",
    [
        ("requirements/dev.txt", REGISTERED | EXTRAS | DEV),
        ("requirements/image.txt", REGISTERED),
        ("requirements/dev.txt", CLIENT_RUNTIME | CLIENT_EXTRAS),
        ("requirements/codegen.txt", CODEGEN),
        ("requirements/deploy.txt", DEPLOY),
        ("requirements/audit.txt", AUDIT),
    ],
    ids=["service", "image", "client", "codegen", "deploy", "audit"],
)
def test_the_lock_pins_what_is_asked_for(lock: str, wanted: dict[str, Requirement]) -> None:
    pins = locked(lock)
    assert {
        name for name, req in wanted.items() if not req.specifier.contains(pins.get(name, "0"))
    } == set()


def test_the_image_installs_what_the_tests_ran_with_and_no_postgres() -> None:
    image, tested = locked("requirements/image.txt"), locked("requirements/dev.txt")
    assert {name for name in image if image[name] != tested.get(name)} == set()
    assert set(EXTRAS) & set(image) == set()


def test_the_service_depends_on_the_client_of_this_checkout_and_no_lock_names_it() -> None:
    assert RUNTIME["hookline"].specifier.contains(CLIENT["project"]["version"])
    assert PROJECT["tool"]["uv"]["sources"]["hookline"] == {"path": "clients/python"}
    for path in (ROOT / "requirements").iterdir():
        assert not re.search(r"^hookline\b", path.read_text(), re.MULTILINE), path.name


def test_the_client_s_stubs_were_made_by_the_oldest_toolchain_that_it_supports() -> None:
    toolchain = str(CODEGEN["grpcio-tools"].specifier).removeprefix("==").removesuffix(".0")
    assert str(CLIENT_RUNTIME["grpcio"].specifier) == f">={toolchain}"


@pytest.mark.parametrize(
    "root, own, declared",
    [
        ("service", {"hookline_service", "hookline"}, RUNTIME),
        ("clients/python", {"hookline"}, CLIENT_RUNTIME | CLIENT_EXTRAS),
    ],
    ids=["service", "client"],
)
def test_what_is_imported_is_declared(
    root: str, own: set[str], declared: dict[str, Requirement]
) -> None:
    distributions = {**importlib.metadata.packages_distributions(), **GOOGLE}
    undeclared = {
        f"{path}: {name}"
        for path in python_files()
        if path.is_relative_to(root)
        for name in imported(path) - own
        if not {d.lower().replace("_", "-") for d in distributions.get(name, ())} & declared.keys()
    }
    assert undeclared == set()


def test_domain_imports_the_standard_library_only() -> None:
    foreign = {
        f"{path}: {name}"
        for path in python_files()
        if path.is_relative_to("service/hookline_service/domain")
        for name in imported(path) - {"hookline_service"}
    }
    assert foreign == set()
