"""The layers of packages: the contracts of pyproject.toml hold, and each of them can be broken.

The second half makes every module empty, adds one forbidden import, and expects import-linter to
report it: a contract that nothing can break proves nothing.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.architecture.repository import PACKAGE, ROOT, python_files

ALLOWED = {
    "api/middleware": "import grpc, hookline",
    "store": "import asyncpg",
    "targets/http": "import httpx, httptools, idna",
    "identity": "import jwt",
    "schema": "import jsonschema_rs",
    "telemetry": "import h11, opentelemetry, prometheus_client",
}


def lint_imports(tree: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of pyproject.toml against the packages under `tree`."""
    return subprocess.run(
        [
            pathlib.Path(sys.executable).with_name("lint-imports"),
            "--no-cache",
            "--config",
            ROOT / "pyproject.toml",
        ],
        cwd=tree,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                (str(tree / "service"), str(tree / "clients" / "python"))
            ),
        },
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def empty_packages(tmp_path: pathlib.Path) -> pathlib.Path:
    """Every module, empty, and the foreign libraries that some may import."""
    for path in python_files():
        if path.is_relative_to(PACKAGE) or path.is_relative_to("clients/python/hookline"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
    for package, line in ALLOWED.items():
        (tmp_path / PACKAGE / package / "allowed.py").write_text(line + "\n")
    return tmp_path


def test_the_packages_keep_their_contracts() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_empty_packages_keep_them_too(empty_packages: pathlib.Path) -> None:
    result = lint_imports(empty_packages)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "package, line",
    [
        ("domain", "import hookline_service.telemetry"),
        ("telemetry", "import hookline_service.store"),
        ("store", "import hookline_service.targets.http"),
        ("targets/http", "import hookline_service.store"),
        ("store", "import hookline_service.pipeline"),
        ("pipeline", "import hookline_service.api"),
        ("api", "import hookline_service.config"),
        ("config", "import hookline_service.api"),
        ("api", "import hookline_service.app"),
        ("app", "import hookline_service.supervisor"),
        ("supervisor", "import hookline_service.cli"),
        ("identity", "import hookline_service.store"),
        ("store", "import hookline_service.identity"),
        ("pipeline", "import grpc"),
        ("identity", "import grpc"),
        ("targets/http", "import hookline"),
        ("pipeline", "import asyncpg"),
        ("store", "import httpx"),
        ("pipeline", "import hookline_service.store.embedded"),
        ("pipeline", "import opentelemetry.trace"),
        ("api", "import prometheus_client"),
        ("api", "import httptools"),
        ("api", "import idna"),
        ("targets/http", "import h11"),
        ("api", "import jwt"),
        ("pipeline", "import jsonschema_rs"),
        ("schema", "import hookline_service.store"),
        ("domain", "import time"),
        ("domain", "import asyncio"),
        ("unlisted", "import hookline_service.domain"),
        (
            "pipeline/publishing",
            "import hookline_service.pipeline.actions",
        ),
        ("pipeline/unlisted", "import hookline_service.domain"),
        ("api/conversion", "import hookline_service.api.events"),
        ("api/unlisted", "import hookline_service.domain"),
        ("../../clients/python/hookline", "import hookline_service.domain"),
    ],
    ids=lambda value: value.replace(" ", "-"),
)
def test_a_forbidden_import_is_reported(
    empty_packages: pathlib.Path, package: str, line: str
) -> None:
    (empty_packages / PACKAGE / package).mkdir(exist_ok=True)
    (empty_packages / PACKAGE / package / "__init__.py").write_text(line + "\n")
    result = lint_imports(empty_packages)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout or "unlisted" in result.stdout
