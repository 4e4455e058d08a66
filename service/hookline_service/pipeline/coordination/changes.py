"""What others decided: pauses, deletions, cancels, operator's retries, new event types.

Owners read the change log every second, and at once when a call on this node wrote to it or another
node says so. A change is an instruction to look again, never a command, so reading one twice does
no harm. The cursor is a snapshot of the server (`pg_current_snapshot`): a read returns the changes
that became visible after it, each once, in pages. A change whose number is small but whose commit
is late is not missed, and a transaction that stays open makes no read longer.
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
    """Reads the change log and carries it into memory."""

    def __init__(
        self,
        store: LaneStore,
        lanes: Lanes,
        configs: LaneConfigs,
        catalog: EventTypeCatalog,
        clock: Clock,
    ) -> None:
        self._store = store
        self._clock = clock
        self._lanes = lanes
        self._configs = configs
        self._catalog = catalog
        self._cursor: ChangeCursor | None = None
        self._copies = 0
        """How often the database was replaced by another copy of it."""
        self._read_s = 0.0
        """When the last read began that came through."""
        self.is_failing = False
        """Whether the last read failed."""
        self._wake = asyncio.Event()
        self._is_poked = False
        self._task: asyncio.Task[None] | None = None
        self.on_foreign: Callable[[int | None], None] = lambda _bucket: None
        """Called with another node's bucket, of which a call here changed something; None: all."""

    async def start(self) -> None:
        """Take the cursor, read what it stands for, then follow the log."""
        await self._begin()
        self._task = asyncio.create_task(self._run(), name="changes")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._store.close()

    def history_changed(self) -> None:
        """Begin anew: the numbers of another copy of the database are of other transactions."""
        self._cursor = None
        self._copies += 1
        self._catalog.forget()
        self._wake.set()

    async def _begin(self) -> ChangeCursor:
        """Take the cursor, then read whatever a change before it may have been of."""
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
        """Read the log now: a call on this node has just written to it, and others should know."""
        self._is_poked = True
        self._wake.set()

    async def event_types_changed(self) -> None:
        """A call on this node has changed event types: the very next publish here is bound by it.

        Other nodes are told, and bound within a second.
        """
        self.poke()
        with contextlib.suppress(UnavailableError):  # it is stored, and the log tells of it again
            await self._catalog.reload()

    def hear(self) -> None:
        """Read the log now: another node says that there is something in it."""
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
        """Carry what is new into memory, a page at a time."""
        began_s = self._clock.boottime_s()
        if began_s - self._read_s > CHANGES_KEPT_S / 2:
            self._cursor = None  # what came first since then may have been deleted unread
        is_poked, self._is_poked = self._is_poked, False
        cursor = self._cursor or await self._begin()
        while True:
            begun_at = self._cursor
            changes, cursor = await self._store.changes(cursor)
            if is_poked:
                self._tell(changes)
            await self._carry_out(changes)
            if self._cursor is not begun_at:
                return  # they were read on another copy of the database
            self._cursor = cursor
            if cursor.until is None:
                self._read_s = began_s
                return

    def _tell(self, changes: list[Change]) -> None:
        """What is not this node's to carry out, or not its alone."""
        for bucket in {change.bucket for change in changes}:
            if bucket is None or not self._lanes.owns(bucket):
                self.on_foreign(bucket)

    async def _carry_out(self, changes: list[Change]) -> None:
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
                    self._lanes.touch(uid, bucket_of(uid))  # retried, perhaps
                elif change.kind == "SUBSCRIPTION":
                    self._lanes.changed(uid, bucket_of(uid))  # resumed, perhaps
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
