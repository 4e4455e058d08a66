"""A running `hookline dev` for the tests that only talk to it, one for each file of tests."""

import pathlib
import signal
from collections.abc import Iterator

import pytest

from tests.e2e.processes import Dev, data_directory, running_dev

# What is ignored stays so in our children, and Hookline respects it: under `nohup`, or in a
# script's background, the signals that these tests send would never arrive.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


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
