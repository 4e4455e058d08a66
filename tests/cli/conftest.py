"""Commands run in the tests' own process here, which keeps what it may do."""

import pytest


@pytest.fixture(autouse=True)
def _allow_core_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a command takes core dumps from the whole worker, and later tests find none."""
    monkeypatch.setenv("HOOKLINE_ALLOW_CORE_DUMPS", "on")
