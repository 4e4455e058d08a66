"""What an ordered lane knows of its keys: which memory has a delivery of, which to look at again.

Theory of operation. Of each ordering key only the earliest pending row may be sent, and Postgres
alone knows which that is: an operator may have brought an earlier one back, or cancelled the one
that was waited for. So nothing is handed over, and nothing of an ordered lane waits in memory for
its time; memory holds what may be sent now, one delivery a key at most. A key is looked at

    when an event of it is published here, when a delivery of it is recorded, when its retry is due
        by name: one descent of an index, however many wait behind
    every second, and whenever something was changed that is not known by name
        in a walk through all keys of the lane, a page at a time; after a page of which nothing can
        be sent it rests, four times as long as the page took

A walk from the first key to the last that nothing disturbed makes the lane COMPLETE.
"""

from __future__ import annotations

from itertools import islice

from hookline_service.domain.ordering import FIRST_KEY_HASH

TOUCHED_MAX = 1_000
"""Keys that a lane remembers by name; of more, it walks through all."""


class KeyOrder:
    """The keys of one ordered lane, by their hashes."""

    __slots__ = ("busy", "from_hash", "is_missed", "touched", "waiting", "walks_on_s")

    def __init__(self) -> None:
        self.busy: set[int] = set()
        """Of these memory holds a delivery: queued, sent, or not yet recorded."""
        self.touched: dict[int, None] = {}
        """The earliest row of these may be another one than before; in the order of the news."""
        self.waiting: set[int] = set()
        """The earliest row of these is not due yet, and a timer waits for it."""
        self.from_hash = FIRST_KEY_HASH
        """Where the walk through all keys goes on."""
        self.is_missed = False
        """Something was changed since the walk began, perhaps where it had been already."""
        self.walks_on_s = 0.0
        """No page is read before then."""

    def touch(self, key_hash: int) -> bool:
        """Have a key looked at again; False where too many are to be.

        What comes behind a delivery that is in memory, or that is waited for, is not the earliest.
        """
        if key_hash in self.busy or key_hash in self.waiting:
            return True
        if len(self.touched) >= TOUCHED_MAX:
            return False
        self.touched[key_hash] = None
        return True

    def hold(self, key_hash: int) -> None:
        """Memory has a delivery of a key; what was waited for is not the earliest any more."""
        self.busy.add(key_hash)
        self.waiting.discard(key_hash)

    def change(self, key_hash: int) -> None:
        """The row that a key waits for may have been changed; too many are left to the walk."""
        self.waiting.discard(key_hash)
        self.touch(key_hash)

    def take_touched(self, most: int) -> list[int]:
        """Up to so many keys to look at now.

        Not those of which memory has a delivery by now: it may be recorded while Postgres is read,
        and what was read of it would be sent again.
        """
        taken = list(islice(self.touched, most))
        for key_hash in taken:
            del self.touched[key_hash]
        return [key_hash for key_hash in taken if key_hash not in self.busy]

    def begin_page(self, *, is_disturbed: bool) -> None:
        """A page is about to be read; `is_disturbed`: something was changed since the last one."""
        if self.from_hash == FIRST_KEY_HASH:
            self.is_missed = False
        elif is_disturbed:
            self.is_missed = True

    def pass_over(self, *, is_disturbed: bool) -> None:
        """Keys are read by name alone, for the walk rests; what was changed it has yet to see."""
        self.is_missed = self.is_missed or is_disturbed

    def end_page(self, next_hash: int | None) -> bool:
        """Where the walk goes on; whether it is over, and nothing was missed."""
        self.from_hash = FIRST_KEY_HASH if next_hash is None else next_hash
        return next_hash is None and not self.is_missed
