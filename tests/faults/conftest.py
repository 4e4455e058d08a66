"""How long the faults are played: rounds enough to show that each works, or as many as it takes.

`make test` plays the short version; `make faults` the long one (HOOKLINE_TEST_FAULTS=long).
"""

import os
import random

import pytest

IS_LONG = os.environ.get("HOOKLINE_TEST_FAULTS") == "long"


long_only = pytest.mark.skipif(not IS_LONG, reason="`make faults` plays it")


@pytest.fixture
def rounds() -> int:
    """How often a fault that comes at a random moment is repeated."""
    return 30 if IS_LONG else 3


@pytest.fixture
def lease_s() -> float:
    """The lease of the nodes: the default one, or the shortest that can be set."""
    return 10.0 if IS_LONG else 4.0


@pytest.fixture
def chance() -> random.Random:
    """Random moments; the seed is shown with a failure, and HOOKLINE_TEST_SEED repeats it."""
    seed = os.environ.get("HOOKLINE_TEST_SEED") or str(random.getrandbits(32))
    print(f"HOOKLINE_TEST_SEED={seed}")  # noqa: T201 - shown by pytest where the test fails
    return random.Random(seed)
