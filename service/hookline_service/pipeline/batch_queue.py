"""A queue for group commit: which items share a statement, and how long they wait for others.

A statement for one outcome alone would be expensive, so an outcome waits a moment for those of
requests that are on the wire. A batch is complete at once if nothing else is on the wire, if it is
large enough, or if an item is urgent (the next delivery of its ordering key waits for it). While
one statement is written, the items of the next one accumulate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_BATCH = 256
"""A larger batch would block the event loop for milliseconds."""
GATHER_S = 0.005
"""How long an item may wait for others, in seconds; meanwhile it holds a slot or a probe."""
ENOUGH = 64
"""A batch of this size fills a statement well, and waits no longer."""


class BatchQueue(Generic[T]):
    """A queue with one consumer, which takes a batch at a time."""

    def __init__(self, coming: Callable[[], int]) -> None:
        """`coming` returns the number of items that are queued or may be soon."""
        self._coming = coming
        self._items: list[T] = []
        self._has_items = asyncio.Event()
        self._has_enough = asyncio.Event()
        self._is_stopping = False

    def add(self, item: T, *, is_urgent: bool = False) -> None:
        """Add an item; an urgent one completes the batch."""
        self._items.append(item)
        self._has_items.set()
        if is_urgent or self._is_enough():
            self._has_enough.set()

    def stop(self) -> None:
        """Complete every batch at once from now on; the queue ends when it is empty."""
        self._is_stopping = True
        self._has_items.set()
        self._has_enough.set()

    async def next(self) -> list[T]:
        """Wait for the next batch; an empty one is the end."""
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
        return self._is_stopping or len(self._items) >= min(ENOUGH, self._coming())
