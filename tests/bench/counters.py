"""Counters that the processes of a run share: each slot has one writer, and anyone may look.

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
    """Whole numbers in a mapped file."""

    def __init__(self, path: Path) -> None:
        """Share the counters of that file; a new file's are all zero."""
        self.path = path
        path.touch()
        with path.open("r+b") as file:
            file.truncate(_NUMBER.size * _SLOTS)
            self._map = mmap.mmap(file.fileno(), _NUMBER.size * _SLOTS)

    @property
    def mismatched(self) -> int:
        """Signatures that did not verify."""
        return self._read(_MISMATCHED)

    def count_mismatch(self) -> None:
        """One more. The receiver's."""
        self._write(_MISMATCHED, self._read(_MISMATCHED) + 1)

    def published(self, publisher: int) -> int:
        """Events acknowledged to a publisher, since the file began."""
        return self._read(_PUBLISHED + publisher)

    def count_published(self, publisher: int, events: int) -> None:
        """So many more. That publisher's."""
        self._write(_PUBLISHED + publisher, self.published(publisher) + events)

    def received(self, group: int = 0) -> int:
        """Requests that came to a group of the receiver's ports."""
        return self._read(_GROUPS + 2 * group)

    def distinct(self, group: int = 0) -> int:
        """Of these, different pairs of path and webhook id: deliveries, each counted once."""
        return self._read(_GROUPS + 2 * group + 1)

    def set_received(self, group: int, received: int, distinct: int) -> None:
        """Both numbers of a group. The receiver's."""
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
