"""The staircase of rooms: the contracts of pyproject.toml hold, and each of them can be broken.

The second half builds a house of bare rooms, adds one forbidden import, and expects import-linter
to see it: a contract that nothing can break proves nothing.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.architecture.repository import ROOT

ROOMS = (
    "__main__",
    "cli",
    "supervisor",
    "app",
    "config",
    "api",
    "pipeline",
    "store",
    "store/embedded",
    "webhook",
    "identity",
    "schema",
    "telemetry",
    "domain",
)


ALLOWED = {
    "api": "import grpc, hookline",
    "store": "import asyncpg",
    "webhook": "import httpx, httptools, idna",
    "identity": "import jwt",
    "schema": "import jsonschema_rs",
    "telemetry": "import h11, opentelemetry, prometheus_client",
}


def lint_imports(house: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of pyproject.toml against the packages under `house`."""
    return subprocess.run(
        [
            pathlib.Path(sys.executable).with_name("lint-imports"),
            "--no-cache",
            "--config",
            ROOT / "pyproject.toml",
        ],
        cwd=house,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(house), str(house / "clients" / "python"))),
        },
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def bare_house(tmp_path: pathlib.Path) -> pathlib.Path:
    """Rooms with nothing in them but the foreign libraries that each may import."""
    for name in ("service", "clients/python/hookline", *(f"service/{room}" for room in ROOMS)):
        package = tmp_path / name
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
    for room, line in ALLOWED.items():
        (tmp_path / "service" / room / "allowed.py").write_text(line + "\n")
    return tmp_path


def test_the_house_keeps_its_contracts() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_bare_house_keeps_them_too(bare_house: pathlib.Path) -> None:
    result = lint_imports(bare_house)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "room, line",
    [
        ("service/domain", "import service.telemetry"),
        ("service/telemetry", "import service.store"),
        ("service/store", "import service.webhook"),
        ("service/webhook", "import service.store"),
        ("service/store", "import service.pipeline"),
        ("service/pipeline", "import service.api"),
        ("service/api", "import service.config"),
        ("service/config", "import service.api"),
        ("service/api", "import service.app"),
        ("service/app", "import service.supervisor"),
        ("service/supervisor", "import service.cli"),
        ("service/identity", "import service.store"),
        ("service/store", "import service.identity"),
        ("service/pipeline", "import grpc"),
        ("service/identity", "import grpc"),
        ("service/webhook", "import hookline"),
        ("service/pipeline", "import asyncpg"),
        ("service/store", "import httpx"),
        ("service/pipeline", "import service.store.embedded"),
        ("service/pipeline", "import opentelemetry.trace"),
        ("service/api", "import prometheus_client"),
        ("service/api", "import httptools"),
        ("service/api", "import idna"),
        ("service/webhook", "import h11"),
        ("service/api", "import jwt"),
        ("service/pipeline", "import jsonschema_rs"),
        ("service/schema", "import service.store"),
        ("service/domain", "import time"),
        ("service/domain", "import asyncio"),
        ("service/unlisted", "import service.domain"),
        ("clients/python/hookline", "import service.domain"),
    ],
    ids=lambda value: value.rpartition("/")[2].replace(" ", "-"),
)
def test_a_forbidden_import_is_seen(bare_house: pathlib.Path, room: str, line: str) -> None:
    (bare_house / room).mkdir(exist_ok=True)
    (bare_house / room / "__init__.py").write_text(line + "\n")
    result = lint_imports(bare_house)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout or "unlisted" in result.stdout
