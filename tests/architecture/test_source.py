"""How a file reads: it opens by saying what it owns, and ends before a reader tires."""

import ast
import pathlib

import pytest

from tests.architecture.repository import files, python_files, text, tree

LINES_A_FILE = 400
LINES_A_FUNCTION = 70
COMMENT = {".py": "#", ".sh": "#", ".sql": "--", ".proto": "//", ".yaml": "#", ".toml": "#"}

python_file = pytest.mark.parametrize("path", python_files(), ids=str)


@python_file
def test_a_file_opens_with_a_docstring(path: pathlib.PurePosixPath) -> None:
    assert ast.get_docstring(tree(path)), f"{path} says nothing of what it owns"


@python_file
def test_a_file_is_short_enough_to_read(path: pathlib.PurePosixPath) -> None:
    assert len(text(path).splitlines()) <= LINES_A_FILE


@python_file
def test_functions_fit_a_screen(path: pathlib.PurePosixPath) -> None:
    lengths = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: n for name, n in lengths.items() if n > LINES_A_FUNCTION} == {}


@pytest.mark.parametrize(
    "path", [path for path in files() if path.suffix in {".sql", ".proto"}], ids=str
)
def test_statements_and_contracts_open_with_a_comment(path: pathlib.PurePosixPath) -> None:
    assert text(path).startswith(COMMENT[path.suffix])


def sleeps(module: ast.Module) -> list[int]:
    """The lines that call a `sleep`, except `asyncio.sleep(0)`, which only lets others run."""
    return [
        node.lineno
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] == "sleep"
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
    ]


@python_file
def test_tests_wait_for_a_named_thing_and_never_sleep(path: pathlib.PurePosixPath) -> None:
    is_paced_load = path.is_relative_to("tests/bench")
    if path.is_relative_to("tests") and not is_paced_load:
        assert sleeps(tree(path)) == []


def test_a_sleep_would_be_seen() -> None:
    code = "asyncio.sleep(0)\nasyncio.sleep(0.1)\ntime.sleep(delay_s)\nsleep(1)"
    assert sleeps(ast.parse(code)) == [2, 3, 4]
