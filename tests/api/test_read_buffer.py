"""Data that a peer sends without pause is read in small pieces, before it is authenticated.

gRPC's core doubles what it reads at once while more comes than it takes, without a bound of its
own, and every connection keeps that. Frames of no known type are the cheapest to send: the core
skips them, and flow control does not count them.
"""

import asyncio
import os
import socket
from pathlib import Path

from hookline_service.api.server import READ_BUFFER_BYTES
from tests.api.conftest import Api
from tests.hostile import wire

CONNECTIONS, WRITES = 6, 60
UNKNOWN_TYPE = 0x42
FLOOD = wire.frame(UNKNOWN_TYPE, 0, 0, bytes(64)) * 15_000
"""1.1 MB."""
SENT_MB = CONNECTIONS * WRITES * len(FLOOD) / 1e6
GROWTH_MAX_MB = 12


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def flood(port: int) -> float:
    """Send on one connection without a pause; the most that was resident meanwhile."""
    peak_mb = 0.0
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(wire.PREFACE + wire.settings())
        for _ in range(WRITES):
            connection.sendall(FLOOD)
            peak_mb = max(peak_mb, resident_mb())
    return peak_mb


async def test_connections_that_send_without_pause_do_not_exhaust_memory(api: Api) -> None:
    before_mb = resident_mb()
    async with asyncio.TaskGroup() as group:
        floods = [group.create_task(asyncio.to_thread(flood, api.port)) for _ in range(CONNECTIONS)]
    assert READ_BUFFER_BYTES * CONNECTIONS < GROWTH_MAX_MB * 1e6 / 4
    assert SENT_MB > 8 * GROWTH_MAX_MB
    assert max(peak.result() for peak in floods) - before_mb < GROWTH_MAX_MB
