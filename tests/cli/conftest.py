"""Commands run in the process of the tests here, whose limits they do not change."""

import pytest


@pytest.fixture(autouse=True)
def _allow_core_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a command takes core dumps from the whole worker, and later tests find none."""
    monkeypatch.setenv("HOOKLINE_ALLOW_CORE_DUMPS", "on")
