"""The repository as data, for the tests of its shape: its files, their text, their syntax.

Reads what git would commit, new files included, so that a mistake shows before the commit.
"""

import ast
import functools
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def files() -> tuple[pathlib.PurePosixPath, ...]:
    """Every file that is committed or about to be, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = sorted(pathlib.PurePosixPath(name) for name in set(listed.split("\0")) if name)
    return tuple(path for path in paths if (ROOT / path).is_file())


def text(path: pathlib.PurePosixPath) -> str:
    """The text of a file; what is not UTF-8 is replaced."""
    return (ROOT / path).read_text(encoding="utf-8", errors="replace")


def is_generated(path: pathlib.PurePosixPath) -> bool:
    """Whether a file is written by `make generate`, and so is checked by regeneration instead."""
    return "_pb2" in path.name


PACKAGE = pathlib.PurePosixPath("service/hookline_service")
"""The import package of the service."""


@functools.cache
def python_files() -> tuple[pathlib.PurePosixPath, ...]:
    """The Python that people write."""
    return tuple(path for path in files() if path.suffix == ".py" and not is_generated(path))


@functools.cache
def tree(path: pathlib.PurePosixPath) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(text(path), filename=str(path))
