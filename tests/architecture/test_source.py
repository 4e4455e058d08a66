"""How a file reads: it opens with what it owns, and its functions fit a screen."""

import ast
import pathlib

from tests.architecture.repository import files, python_files, text, tree

LINES_A_FUNCTION = 70
COMMENT = {".sql": "--", ".proto": "//"}


def functions(path: pathlib.PurePosixPath) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file, methods and inner ones included."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree(path)) if isinstance(node, definitions)]


def test_a_file_opens_by_saying_what_it_owns() -> None:
    assert [str(path) for path in python_files() if not ast.get_docstring(tree(path))] == []


def test_statements_and_contracts_open_with_a_comment() -> None:
    silent = [
        str(path)
        for path in files()
        if path.suffix in COMMENT and not text(path).startswith(COMMENT[path.suffix])
    ]
    assert silent == []


def test_functions_fit_a_screen() -> None:
    lines = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in python_files()
        for node in functions(path)
    }
    assert {name: n for name, n in lines.items() if n > LINES_A_FUNCTION} == {}


def sleeps(module: ast.Module) -> list[int]:
    """The lines that call a `sleep`, except `asyncio.sleep(0)`, which only lets others run."""
    return [
        node.lineno
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] == "sleep"
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
    ]


def test_tests_wait_for_a_named_thing_and_never_sleep() -> None:
    tests = [path for path in python_files() if path.parts[0] == "tests"]
    paced_load, paced_attacks, polling = (
        pathlib.PurePosixPath("tests/bench"),
        pathlib.PurePosixPath("tests/hostile/black_box.py"),
        pathlib.PurePosixPath("tests/waiting.py"),
    )
    slept = {
        f"{path}:{line}"
        for path in tests
        if not path.is_relative_to(paced_load) and path not in {polling, paced_attacks}
        for line in sleeps(tree(path))
    }
    assert slept == set()


def test_a_sleep_would_be_seen() -> None:
    code = "asyncio.sleep(0)\nasyncio.sleep(0.1)\ntime.sleep(delay_s)\nsleep(1)"
    assert sleeps(ast.parse(code)) == [2, 3, 4]
