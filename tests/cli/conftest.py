"""Commands run in the process of the tests here."""

import pytest


@pytest.fixture(autouse=True)
def _process_is_unchanged(unchanged_process: None) -> None:
    """See `tests/conftest.py`."""
