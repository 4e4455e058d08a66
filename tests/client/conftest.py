"""A scripted service and a client of it."""

from collections.abc import AsyncIterator

import pytest

from hookline import HooklineClient
from tests.client.service import Service


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    running = Service()
    await running.server.start()
    yield running
    await running.server.stop(0)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[HooklineClient]:
    async with HooklineClient(service.target) as connected:
        yield connected
