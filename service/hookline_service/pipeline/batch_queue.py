"""What waits to share a statement, and how long it may.

An outcome alone would make its statement dear, so it waits a moment for those of requests that are
on the wire; where nothing is, or enough has come, or the next delivery of its ordering key waits
for it, it is written at once. While a statement is being written, the next one's share gathers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_BATCH = 256
"""A larger one would keep the event loop, and all who wait for it, for milliseconds."""
GATHER_S = 0.005
"""How long one may wait for others. Only a slot waits for it meanwhile, or a circuit's probe."""
ENOUGH = 64
"""So many fill a statement well; they wait no longer."""


class BatchQueue(Generic[T]):
    """A queue that is taken a batch at a time, by one taker."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._has_items = asyncio.Event()
        self._has_enough = asyncio.Event()
        self._is_stopping = False
        self.coming: Callable[[], int] = lambda: 0
        """How many are here or may come soon."""

    def add(self, item: T, *, hurries: bool = False) -> None:
        """Queue one; where it `hurries`, nobody is waited for."""
        self._items.append(item)
        self._has_items.set()
        if hurries or self._is_enough():
            self._has_enough.set()

    def stop(self) -> None:
        """From now on nobody is waited for, and the queue ends when it is empty."""
        self._is_stopping = True
        self._has_items.set()
        self._has_enough.set()

    async def next(self) -> list[T]:
        """The next batch; an empty one is the end."""
        while not self._items:
            if self._is_stopping:
                return []
            self._has_items.clear()
            await self._has_items.wait()
        if not self._is_enough():
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._has_enough.wait()
        self._has_enough.clear()
        batch = self._items[:MAX_BATCH]
        del self._items[:MAX_BATCH]
        return batch

    def _is_enough(self) -> bool:
        return self._is_stopping or len(self._items) >= min(ENOUGH, self.coming())
