"""TLS handshakes that run at once: few, and tenants take turns, as they do for lookups.

A target's certificates are in memory while its handshake lasts, and it lasts as long as the target
likes, up to the deadline. So handshakes are counted: `running_max` bounds the memory, and by the
turns one tenant whose targets never end theirs leaves some for the others.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.lookup_turns import LookupTurns


class HandshakeTurns:
    """Which connections may begin a TLS handshake."""

    def __init__(self, running_max: int, waiting_max: int = 4_096) -> None:
        self._turns = LookupTurns(running_max, waiting_max)
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[None]] = {}

    @property
    def waiting_count(self) -> int:
        """Connections that wait for a turn."""
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self, tenant_id: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while inside; raises `AttemptFailure` where too many wait.

        A waiter that is cancelled gives up its place.
        """
        number = str(next(self._numbers))
        if not self._turns.join(tenant_id, number):
            raise AttemptFailure(
                AttemptOutcome.INTERNAL_ERROR, "too many connections wait for their TLS handshake"
            )
        may_begin = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._start()
        try:
            await may_begin
            yield
        finally:
            if self._waiting.pop(number, None) is not None:
                self._turns.leave(tenant_id, number)
            else:
                self._turns.ended(tenant_id)
                self._start()

    def _start(self) -> None:
        """Let those begin whose turn it is."""
        while (turn := self._turns.next()) is not None:
            _, number = turn
            may_begin = self._waiting.pop(number)
            if not may_begin.done():  # else it is cancelled, and will give its turn back
                may_begin.set_result(None)
