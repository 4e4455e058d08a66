"""A cache with a bound in bytes, and without a cliff at the bound.

A full cache evicts the less recently used of two random entries. The least recently used of all
would do worse: if keys are used in turn, and there are a few more than fit, each entry would be
evicted just before its use, and every use would miss.
"""

from __future__ import annotations

from random import Random
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class _Entry(Generic[_Value]):
    __slots__ = ("position", "size", "used", "value")

    def __init__(self, value: _Value, position: int) -> None:
        self.value = value
        self.position = position
        self.used = self.size = 0


class ByteCache(Generic[_Value]):
    """Values by string keys. One value alone may exceed the bound."""

    def __init__(self, max_bytes: int, random: Random | None = None) -> None:
        self._max_bytes = max_bytes
        self._random = random or Random()  # noqa: S311 - no secret
        self._entries: dict[str, _Entry[_Value]] = {}
        self._keys: list[str] = []
        """The keys, to draw one at random; each entry has its position in it."""
        self._uses = 0
        self.held_bytes = 0
        self.evictions = 0
        """Values evicted since the start."""

    def peek(self, key: str) -> _Value | None:
        """Return a value; does not count as a use."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def get(self, key: str) -> _Value | None:
        """Return a value; counts as a use."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._uses += 1
        entry.used = self._uses
        return entry.value

    def put(self, key: str, value: _Value, size: int) -> None:
        """Add a value of `size` bytes, or replace it, and evict others while the cache is full."""
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(value, len(self._keys))
            self._keys.append(key)
        self.held_bytes += size - entry.size
        entry.value, entry.size = value, size
        while self.held_bytes > self._max_bytes and len(self._keys) > 1:
            self.pop(self._draw(key))
            self.evictions += 1
        self.get(key)

    def pop(self, key: str) -> None:
        """Remove a value, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self.held_bytes -= entry.size
        last = self._keys.pop()
        if last != key:
            self._keys[entry.position] = last
            self._entries[last].position = entry.position

    def clear(self) -> None:
        """Remove every value."""
        self._entries.clear()
        self._keys.clear()
        self.held_bytes = 0

    def _draw(self, excluded: str) -> str:
        """Return the less recently used of two random keys."""
        drawn: list[str] = []
        while len(drawn) < min(2, len(self._keys) - 1):
            key = self._keys[self._random.randrange(len(self._keys))]
            if key != excluded:
                drawn.append(key)
        return min(drawn, key=lambda key: self._entries[key].used)
