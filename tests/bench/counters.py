"""Counters that the processes of a run share: the receiver counts, the publisher and the driver look."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_SLOTS = 8
_NUMBER = struct.Struct("q")
RECEIVED, DISTINCT, MISMATCHED, PUBLISHED = range(4)


class Counters:
    """Whole numbers in a mapped file; each slot has one writer."""

    def __init__(self, path: Path) -> None:
        """Share the counters of that file; a new file's are all zero."""
        self.path = path
        path.touch()
        with path.open("r+b") as file:
            file.truncate(_NUMBER.size * _SLOTS)
            self._map = mmap.mmap(file.fileno(), _NUMBER.size * _SLOTS)

    def __getitem__(self, slot: int) -> int:
        value: int = _NUMBER.unpack_from(self._map, slot * _NUMBER.size)[0]
        return value

    def __setitem__(self, slot: int, value: int) -> None:
        _NUMBER.pack_into(self._map, slot * _NUMBER.size, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._map.close()
