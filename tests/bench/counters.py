"""Counters that the processes of a run share: the receiver counts, the publisher and the driver look."""

from __future__ import annotations

from multiprocessing import shared_memory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_SLOTS = 8
RECEIVED, DISTINCT, MISMATCHED, PUBLISHED = range(4)


class Counters:
    """Whole numbers in shared memory; each slot has one writer."""

    def __init__(self, name: str | None = None) -> None:
        """Attach to the counters of that name; None makes new ones, all zero."""
        self._is_owner = name is None
        if name is None:
            self._memory = shared_memory.SharedMemory(create=True, size=8 * _SLOTS)
        else:
            self._memory = shared_memory.SharedMemory(name)
        self._view = self._memory.buf.cast("q")
        if self._is_owner:
            for slot in range(_SLOTS):
                self._view[slot] = 0

    @property
    def name(self) -> str:
        """By which another process attaches."""
        return self._memory.name

    def __getitem__(self, slot: int) -> int:
        return self._view[slot]

    def __setitem__(self, slot: int, value: int) -> None:
        self._view[slot] = value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._view.release()
        self._memory.close()
        if self._is_owner:
            self._memory.unlink()
