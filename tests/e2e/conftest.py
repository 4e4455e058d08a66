"""A running `hookline dev` for the tests that only talk to it, one for each file of tests."""

import pathlib
from collections.abc import Iterator

import pytest

from tests.e2e.processes import Dev, data_directory, running_dev


@pytest.fixture
def data_dir() -> Iterator[pathlib.Path]:
    """A data directory to be, of this test alone."""
    with data_directory() as path:
        yield path


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    """A service that all tests of a file share; its end is checked too."""
    with data_directory() as path, running_dev(path) as running:
        yield running
        assert running.stop() == 0
