"""Counters shared by the processes of a run: each slot has one writer and any number of readers.

The receiver counts requests and distinct deliveries, a pair of slots for each of its groups; each
publisher counts the events that were acknowledged to it.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

_NUMBER = struct.Struct("q")
_MISMATCHED = 0
_PUBLISHED = 1
PUBLISHERS = 7
_GROUPS = _PUBLISHED + PUBLISHERS
MAX_GROUPS = 28
_SLOTS = _GROUPS + 2 * MAX_GROUPS


class Counters:
    """Integers in a memory-mapped file."""

    def __init__(self, path: Path) -> None:
        """Map the counters of a file; those of a new file are zero."""
        self.path = path
        path.touch()
        with path.open("r+b") as file:
            file.truncate(_NUMBER.size * _SLOTS)
            self._map = mmap.mmap(file.fileno(), _NUMBER.size * _SLOTS)

    @property
    def mismatched(self) -> int:
        """The number of invalid signatures."""
        return self._read(_MISMATCHED)

    def count_mismatch(self) -> None:
        """Count an invalid signature. Called by the receiver."""
        self._write(_MISMATCHED, self._read(_MISMATCHED) + 1)

    def published(self, publisher: int) -> int:
        """Return the events acknowledged to a publisher since the file was created."""
        return self._read(_PUBLISHED + publisher)

    def count_published(self, publisher: int, events: int) -> None:
        """Count acknowledged events. Called by that publisher."""
        self._write(_PUBLISHED + publisher, self.published(publisher) + events)

    def received(self, group: int = 0) -> int:
        """Return the number of requests to a group of the receiver's ports."""
        return self._read(_GROUPS + 2 * group)

    def distinct(self, group: int = 0) -> int:
        """Return the number of distinct pairs of path and webhook id: deliveries."""
        return self._read(_GROUPS + 2 * group + 1)

    def set_received(self, group: int, received: int, distinct: int) -> None:
        """Set both numbers of a group. Called by the receiver."""
        _NUMBER.pack_into(self._map, (_GROUPS + 2 * group) * _NUMBER.size, received)
        _NUMBER.pack_into(self._map, (_GROUPS + 2 * group + 1) * _NUMBER.size, distinct)

    def _read(self, slot: int) -> int:
        value: int = _NUMBER.unpack_from(self._map, slot * _NUMBER.size)[0]
        return value

    def _write(self, slot: int, value: int) -> None:
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
