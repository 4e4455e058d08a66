"""A running node for each test of the data path, and a target for it."""

from collections.abc import AsyncIterator

import pytest

from tests.pipeline.rig import Receiver, Rig, running


@pytest.fixture
async def rig(database_url: str) -> AsyncIterator[Rig]:
    """A node that runs, on a database of its own whose clock can be turned."""
    async with running(database_url) as node:
        await node.make_clock_turnable()
        yield node


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A target that answers as it is told."""
    async with Receiver() as target:
        yield target
