"""Fixtures of all tests: the event loop of production, a real Postgres, a real grpcurl.

The tests of a package have their own fixtures beside them; these are shared by several packages.
"""

import os
import pathlib
import resource
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping

import hypothesis
import pytest

from tests.event_loop import StrictLoop

pytest_plugins = ["tests.postgres"]

ROOT = pathlib.Path(__file__).parents[1]

# Before anything imports grpc: its fork handlers are for a process that forks and continues. Our
# child processes call exec, and some crashed in the handlers before they did.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# Five hundred connections, both ends ours, and what the tests before them hold still: most systems
# give a process 1,024 descriptors until it asks for more.
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if 0 <= soft < 4_096:  # -1: as many as it likes
    resource.setrlimit(resource.RLIMIT_NOFILE, (4_096 if hard < 0 else min(hard, 4_096), hard))

# A loaded machine is no failure: the timeout of the whole test is the bound, not one of an example.
hypothesis.settings.register_profile("hookline", deadline=None, print_blob=True)
hypothesis.settings.load_profile("hookline")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """Async tests and fixtures run on the loop of production."""
    return {"uvloop": StrictLoop}


@pytest.fixture(scope="session")
def grpcurl() -> pathlib.Path:
    """The grpcurl that `make test` built. Without one: skipped, and failed where CI is set."""
    path = ROOT / ".tools" / "bin" / "grpcurl"
    if path.exists():
        return path
    reason = f"no grpcurl at {path.relative_to(ROOT)}: `make test` builds it where Go is installed"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def unchanged_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a command that runs in this process from changing it for all later tests.

    It would forbid core dumps and replace the configuration of all loggers.
    """
    monkeypatch.setenv("HOOKLINE_ALLOW_CORE_DUMPS", "on")
    monkeypatch.setattr("hookline_service.cli.node.configure_logging", lambda *_: None)
