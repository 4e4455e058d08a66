"""Reads the change log: pauses, deletions, cancellations, retries by operators, event types.

Owners read the change log every second, and at once when a call on this node wrote to it or another
node sends a notification. A change is an instruction to read something again, never a command, so
reading one twice does no harm. The cursor is a snapshot of the server (`pg_current_snapshot`): a
read returns the changes that became visible after it, each once, in pages. A change with a small
number and a late commit is not missed, and a transaction that stays open makes no read longer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from uuid import UUID

import structlog

from hookline_service.domain.errors import UnavailableError
from hookline_service.domain.ids import bucket_of
from hookline_service.pipeline.clock import Clock
from hookline_service.pipeline.dispatch.lane_configs import LaneConfigs
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.publishing.catalog import EventTypeCatalog
from hookline_service.pipeline.upkeep.chores import CHANGES_KEPT_S
from hookline_service.store.database import TRANSIENT, history_changed
from hookline_service.store.lanes import Change, ChangeCursor, LaneStore

_log = structlog.get_logger(__name__)

INTERVAL_S = 1.0


class Changes:
    """Reads the change log and applies it to memory."""

    def __init__(
        self,
        store: LaneStore,
        lanes: Lanes,
        configs: LaneConfigs,
        catalog: EventTypeCatalog,
        clock: Clock,
        *,
        notify_owner: Callable[[int | None], None],
    ) -> None:
        """`notify_owner` is called with a bucket of another node that a call here changed.

        With None for a change that concerns all nodes.
        """
        self._store = store
        self._notify_owner = notify_owner
        self._clock = clock
        self._lanes = lanes
        self._configs = configs
        self._catalog = catalog
        self._cursor: ChangeCursor | None = None
        self._copies = 0
        """How often the database was replaced by another copy of itself."""
        self._read_s = 0.0
        """When the last successful read began."""
        self.is_failing = False
        """Whether the last read failed."""
        self._wake = asyncio.Event()
        self._is_poked = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the cursor, read the state as of it, then follow the log."""
        await self._begin()
        self._task = asyncio.create_task(self._run(), name="changes")

    async def stop(self) -> None:
        """Stop following the log."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._store.close()

    def history_changed(self) -> None:
        """Start again: on another copy of the database a number means another transaction."""
        self._cursor = None
        self._copies += 1
        self._catalog.forget()
        self._wake.set()

    async def _begin(self) -> ChangeCursor:
        """Take the cursor, then read all state that a change before it may have altered."""
        copies, began_s = self._copies, self._clock.boottime_s()
        await self._store.open()
        cursor = await self._store.change_cursor()
        await self._catalog.reload()
        lanes = list(self._lanes.all())
        for lane in lanes:
            self._lanes.forget_all(lane)
        await self._configs.reconfigure([lane.subscription_uid for lane in lanes])
        if self._copies != copies:
            raise history_changed()
        self._cursor, self._read_s = cursor, began_s
        return cursor

    def poke(self) -> None:
        """Read the log now and notify other owners: a call on this node has just written to it."""
        self._is_poked = True
        self._wake.set()

    async def event_types_changed(self) -> None:
        """Reload event types that a call on this node changed, so that its next publish sees them.

        Other nodes are notified; without that they see the change within a second.
        """
        self.poke()
        with contextlib.suppress(UnavailableError):  # it is stored, and the log has it
            await self._catalog.reload()

    def read_soon(self) -> None:
        """Read the log now: another node has written to it."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(INTERVAL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.read()
                self.is_failing = False
            except TRANSIENT as error:
                _log.warning("change_log_read_failed", error=str(error))
                self.is_failing = True
            except Exception:  # noqa: BLE001 - logged whole; the next turn goes on
                _log.exception("changes_broken")
                self.is_failing = True

    async def read(self) -> None:
        """Apply new changes to memory, a page at a time."""
        began_s = self._clock.boottime_s()
        if began_s - self._read_s > CHANGES_KEPT_S / 2:
            self._cursor = None  # the oldest changes since then may have been deleted unread
        is_poked, self._is_poked = self._is_poked, False
        cursor = self._cursor or await self._begin()
        while True:
            begun_at = self._cursor
            changes, cursor = await self._store.changes(cursor)
            if is_poked:
                self._notify_owners(changes)
            await self._apply(changes)
            if self._cursor is not begun_at:
                return  # they were read on another copy of the database
            self._cursor = cursor
            if cursor.until is None:
                self._read_s = began_s
                return

    def _notify_owners(self, changes: list[Change]) -> None:
        """Notify the owners of changes that are not, or not only, of buckets of this node."""
        for bucket in {change.bucket for change in changes}:
            if bucket is None or not self._lanes.owns(bucket):
                self._notify_owner(bucket)

    async def _apply(self, changes: list[Change]) -> None:
        subscriptions: set[UUID] = set()
        for change in changes:
            uid = change.subscription_uid
            if uid is None:
                continue
            lane = self._lanes.get(uid)
            if lane is None:
                if not self._lanes.owns(bucket_of(uid)):
                    continue
                if change.kind == "DELIVERY":
                    self._lanes.touch(uid, bucket_of(uid))  # it may be a retry
                elif change.kind == "SUBSCRIPTION":
                    self._lanes.changed(uid, bucket_of(uid))  # it may be a resumption
                continue
            if change.kind == "DELIVERY" and change.delivery_id is not None:
                self._lanes.forget(lane, change.delivery_id, change.key_hash)
            elif change.kind == "LANE":
                self._lanes.forget_all(lane)
            else:
                subscriptions.add(uid)
        if subscriptions:
            await self._configs.reconfigure(list(subscriptions))
        if any(change.kind == "EVENT_TYPE" for change in changes):
            await self._catalog.reload()
