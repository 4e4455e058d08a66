"""Byte budgets: a bound on the bytes that all callers make a node hold, and a share for each.

A caller may hold up to four times what is free, so that one alone gets four fifths and the rest
stays free for others. A caller that holds nothing gets whatever is free.
"""

from __future__ import annotations

from typing import Final

from hookline_service.domain.errors import Reason, ResourceExhaustedError

SHARE: Final = 4
RETRY_AFTER_S: Final = 1.0


class ByteBudget:
    """One budget, and how many bytes of it each caller holds."""

    def __init__(self, what: str, setting: str, maximum_bytes: int) -> None:
        """`what` is held, such as `requests`, and the `setting` are named in refusals."""
        self._what = what
        self._setting = setting
        self._maximum_bytes = maximum_bytes
        self._held_bytes = 0
        self._by_caller: dict[str, int] = {}

    @property
    def held_bytes(self) -> int:
        """The bytes that all callers hold."""
        return self._held_bytes

    def check(self, caller: str) -> None:
        """Raise `ResourceExhaustedError` where a caller already holds more than its share."""
        if not self.has_capacity(caller):
            raise self._refusal(self._by_caller.get(caller, 0))

    def has_capacity(self, caller: str) -> bool:
        """Return whether a caller holds nothing, or less than its share."""
        held = self._by_caller.get(caller, 0)
        return not held or held < SHARE * (self._maximum_bytes - self._held_bytes)

    def take(self, caller: str, size: int, *, may_refuse: bool = True) -> None:
        """Add bytes that a caller holds. Raise `ResourceExhaustedError` where that is too much."""
        held = self._by_caller.get(caller, 0)
        free = self._maximum_bytes - self._held_bytes
        if may_refuse and (size > free or (held and held + size > SHARE * (free - size))):
            raise self._refusal(held)
        self._held_bytes += size
        self._by_caller[caller] = held + size

    def _refusal(self, held: int) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            f"this node holds {self._held_bytes:,} bytes of {self._what}, {held:,} of them this"
            f" caller's, and {self._setting} allows {self._maximum_bytes:,} in all; nothing was"
            " done, repeat the call with a backoff",
            Reason.OVERLOADED,
            retry_after_s=RETRY_AFTER_S,
            metadata={"limit": self._setting, "maximum": str(self._maximum_bytes)},
        )

    def give(self, caller: str, size: int) -> None:
        """Subtract bytes that a caller held."""
        self._held_bytes -= size
        left = self._by_caller[caller] - size
        if left:
            self._by_caller[caller] = left
        else:
            del self._by_caller[caller]
