"""Pages of lists take turns within their tenant, so that they leave connections to other tenants.

A page may take long, and its tenant may ask for many at once: each holds a connection of the pool,
and the memory of a page (`config/memory.py`), which is why all tenants together have a bound too.
Who has a turn within its tenant waits for one of these, in the order of arrival.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from hookline_service.domain.errors import Reason, ResourceExhaustedError

WAITING: Final = 16
"""So many times as many pages as are read at once may be asked for, read or waiting."""
_ADVICE_S: Final = 1.0


class _Turns:
    __slots__ = ("places", "users")

    def __init__(self, most: int) -> None:
        self.places = asyncio.Semaphore(most)
        self.users = 0


class ListTurns:
    """Who reads a page, and who waits; by the tenant's name."""

    def __init__(self, most: int, most_of_all: int) -> None:
        """`most`: pages that are read at once for one tenant; `most_of_all`: for all of them."""
        self._most = most
        self._of_all = asyncio.Semaphore(most_of_all)
        self._turns: dict[str, _Turns] = {}

    @asynccontextmanager
    async def turn(self, subject: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it while inside. Raises where too many wait already."""
        turns = self._turns.setdefault(subject, _Turns(self._most))
        if turns.users >= self._most * WAITING:
            raise ResourceExhaustedError(
                f"{turns.users} lists of {subject} are being read on this node or wait for that;"
                f" {self._most} are read at once (HOOKLINE_MAX_TENANT_LISTS): come back later",
                Reason.OVERLOADED,
                retry_after_s=_ADVICE_S,
                metadata={
                    "subject": subject,
                    "limit": "HOOKLINE_MAX_TENANT_LISTS",
                    "maximum": str(self._most),
                },
            )
        turns.users += 1
        try:
            async with turns.places, self._of_all:
                yield
        finally:
            turns.users -= 1
            if not turns.users:
                del self._turns[subject]
