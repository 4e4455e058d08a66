"""The ordering keys of a lane: which have a delivery in memory, and which are to be read again.

Theory of operation. Of each ordering key only the earliest pending row may be sent, and only
Postgres can say which row that is: an operator may have retried an earlier delivery, or cancelled
the one that memory waited for. So an ordered lane takes no hand-offs, and none of its deliveries
waits in memory for its due time; memory holds at most one delivery of each key, and only if it may
be sent now. A key is read

    by hash, when an event of it is published on this node, when a delivery of it is recorded, and
        when its retry comes due: one index descent, however many deliveries wait behind it
    in a walk through all keys of the lane, a page at a time: every second, and after each change
        that names no key; after a page without a sendable delivery the walk pauses four times as
        long as the page took

A walk from the first key to the last without a change meanwhile makes the lane COMPLETE.
"""

from __future__ import annotations

from itertools import islice

from hookline_service.domain.ordering import FIRST_KEY_HASH

TOUCHED_MAX = 1_000
"""Keys that a lane remembers by hash; with more, it walks through all keys."""


class KeyOrder:
    """The ordering keys of one lane, by their hashes."""

    __slots__ = ("busy", "from_hash", "is_missed", "touched", "waiting", "walk_paused_until_s")

    def __init__(self) -> None:
        self.busy: set[int] = set()
        """Keys with a delivery in memory: queued, sent, or not yet recorded."""
        self.touched: dict[int, None] = {}
        """Keys whose earliest row may have changed, in the order of the changes."""
        self.waiting: set[int] = set()
        """Keys whose earliest row is not due yet; a timer waits for it."""
        self.from_hash = FIRST_KEY_HASH
        """The hash at which the walk through all keys continues."""
        self.is_missed = False
        """Whether the walk may have passed a key that was changed since it began."""
        self.walk_paused_until_s = 0.0
        """No page is read before then."""

    def touch(self, key_hash: int) -> bool:
        """Have a key read again; False where `TOUCHED_MAX` keys are to be read already.

        A key with a delivery in memory, or with a timer, needs no read: its earliest row is that
        delivery, or the one that the timer waits for.
        """
        if key_hash in self.busy or key_hash in self.waiting:
            return True
        if len(self.touched) >= TOUCHED_MAX:
            return False
        self.touched[key_hash] = None
        return True

    def hold(self, key_hash: int) -> None:
        """Mark a key as busy; a row that a timer waits for is no longer its earliest."""
        self.busy.add(key_hash)
        self.waiting.discard(key_hash)

    def release(self, key_hash: int) -> None:
        """Mark a key as not busy: memory dropped its delivery."""
        self.busy.discard(key_hash)

    def change(self, key_hash: int) -> None:
        """Have a key read again whose row was changed, even if a timer waits for that row.

        Beyond `TOUCHED_MAX` keys the walk finds it.
        """
        self.waiting.discard(key_hash)
        self.touch(key_hash)

    def begin_wait(self, key_hash: int) -> None:
        """Record that a timer waits until the earliest row of a key is due."""
        self.waiting.add(key_hash)

    def end_wait(self, key_hash: int) -> None:
        """Record that no timer waits for a key any more."""
        self.waiting.discard(key_hash)

    def end_waits(self) -> None:
        """The same for all keys: their rows may have been changed."""
        self.waiting.clear()

    def take_touched(self, most: int) -> list[int]:
        """Take up to `most` keys to read now.

        Keys that became busy are left out: their delivery may be recorded during the read, and its
        row, read before that, would be sent again.
        """
        taken = list(islice(self.touched, most))
        for key_hash in taken:
            del self.touched[key_hash]
        return [key_hash for key_hash in taken if key_hash not in self.busy]

    def begin_page(self, *, is_disturbed: bool) -> None:
        """Begin to read a page; `is_disturbed`: the lane was marked DIRTY since the last one."""
        if self.from_hash == FIRST_KEY_HASH:
            self.is_missed = False
        elif is_disturbed:
            self.is_missed = True

    def pass_over(self, *, is_disturbed: bool) -> None:
        """Record that keys are read by hash alone, while the walk pauses."""
        self.is_missed = self.is_missed or is_disturbed

    def miss(self) -> None:
        """Record that the walk passed a key whose delivery did not fit into memory."""
        self.is_missed = True

    def end_page(self, next_hash: int | None) -> bool:
        """Move the walk on; True where it is over and missed nothing."""
        self.from_hash = FIRST_KEY_HASH if next_hash is None else next_hash
        return next_hash is None and not self.is_missed

    def pause_walk(self, until_s: float) -> None:
        """Read no page before then."""
        self.walk_paused_until_s = until_s
