"""Notifications between nodes: deliveries are due, something changed, membership changed.

Theory of operation. A notification only hastens what polling finds: the sweep finds what is due,
the reader of the change log what changed, the heartbeat which nodes there are. Notifications may be
lost, duplicated or late; a failure is counted and has no other effect. They are sent after the
commit that they are about, on a connection of their own, one statement at a time. What is added
meanwhile is batched, and addressed only when the statement is sent: to the owner as of the last
survey.

    a node's own channel    d UID UID …   something is due for these subscriptions
                            s             … for more than can be named: sweep
                            c             read the change log
    every node's channel    c NODE        read the change log, sent by this node
                            n NODE        ownership changed: send a heartbeat, sent by this node

A node that owns every bucket sends nothing, and notifications cost nothing.
"""

from __future__ import annotations

import asyncio
import base64
from collections import defaultdict
from collections.abc import Iterable
from uuid import UUID

import structlog

from hookline_service.domain.ids import bucket_of
from hookline_service.pipeline.coordination.changes import Changes
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.dispatch.sweep import Sweeper
from hookline_service.pipeline.membership.ownership import Ownership
from hookline_service.store.database import TRANSIENT, RejectedError
from hookline_service.store.notifying import MAX_PAYLOAD_BYTES, NotifyStore

_log = structlog.get_logger(__name__)
_FAILURES = (*TRANSIENT, RejectedError)

ALL_NODES = "hookline_nodes"
LISTEN_INTERVAL_S = 3.0
"""How often the connection is checked."""
REPEAT_S = 0.5
"""Pause after a failed statement."""
STOP_S = 1.0
"""How long a stop waits for the last notifications."""
MAX_NAMED = 4_096
"""Subscriptions that are collected by name; of others, only the buckets."""
_UID_LETTERS = 22
_UIDS_PER_MESSAGE = (MAX_PAYLOAD_BYTES - 1) // _UID_LETTERS


class Notifier:
    """Sends notifications to other nodes, and acts on theirs."""

    def __init__(
        self,
        store: NotifyStore,
        ownership: Ownership,
        lanes: Lanes,
        changes: Changes,
        sweeper: Sweeper,
    ) -> None:
        self._store = store
        self._ownership = ownership
        self._lanes = lanes
        self._changes = changes
        self._sweeper = sweeper
        self._due: dict[UUID, int] = {}
        """Subscriptions with their buckets."""
        self._due_buckets: set[int] = set()
        """Of subscriptions beyond `MAX_NAMED`."""
        self._changed_buckets: set[int] = set()
        self._to_all: set[str] = set()
        self._listening_as: UUID | None = None
        self._listen_at_s = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.sent = 0
        """Notifications sent."""
        self.received = 0
        """Notifications of other nodes received."""
        self.failures = 0
        """Statements that failed; polling finds what they were about."""

    def start(self) -> None:
        """Start listening, and send what was added before."""
        self._task = asyncio.create_task(self._run(), name="notifier")

    async def stop(self) -> None:
        """Send what is still queued, within `STOP_S`, and end."""
        self._is_stopping = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=STOP_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._store.close()

    # ------------------------------------------------------------------------------------ sending

    def notify_due(self, subscription_uid: UUID, bucket: int) -> None:
        """Queue a notification: a delivery was committed for a subscription of another node."""
        if len(self._due) < MAX_NAMED:
            self._due[subscription_uid] = bucket
        else:
            self._due_buckets.add(bucket)
        self._wake.set()

    def notify_changed(self, bucket: int | None) -> None:
        """Queue a notification: the change log has a new row of a bucket; None: for all nodes."""
        if bucket is None:
            self._to_all.add("c")
        else:
            self._changed_buckets.add(bucket)
        self._wake.set()

    def notify_moved(self) -> None:
        """Queue a notification: this node joined, took or gave buckets, or left."""
        self._to_all.add("n")
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout_at(self._listen_at_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._turn()
            except _FAILURES as error:
                self.failures += 1
                _log.warning("notifier_failed", error=str(error))
                self._listen_at_s = 0.0
                await asyncio.sleep(REPEAT_S)
            except Exception:  # noqa: BLE001 - logged whole; the next turn goes on
                _log.exception("notifier_broken")
                await asyncio.sleep(REPEAT_S)
            if self._is_stopping and not self._wake.is_set():
                return

    async def _turn(self) -> None:
        """Listen on the channels of this node, and send what is queued."""
        node_id, now_s = self._ownership.node_id, asyncio.get_running_loop().time()
        if now_s >= self._listen_at_s or node_id != self._listening_as:
            if await self._store.listen([channel_of(node_id), ALL_NODES], self._receive):
                self._ownership.poke()
                self._changes.read_soon()
                self._sweeper.sweep_soon()
            self._listening_as = node_id
            self._listen_at_s = now_s + LISTEN_INTERVAL_S
        messages = self._take_messages()
        if messages:
            await self._store.notify(messages)
            self.sent += len(messages)

    def _take_messages(self) -> list[tuple[str, str]]:
        """Empty the queue; return it addressed by ownership as of the last survey."""
        me = self._ownership.node_id
        messages = [(ALL_NODES, f"{kind}{me.hex}") for kind in sorted(self._to_all)]
        due: defaultdict[UUID, list[UUID]] = defaultdict(list)
        for uid, bucket in self._due.items():
            owner = self._ownership.owner_of(bucket)
            if owner == me:
                self._lanes.touch(uid, bucket)  # this node owns it by now
            elif owner is not None:
                due[owner].append(uid)
        for owner, uids in due.items():
            messages += [(channel_of(owner), f"d{names}") for names in named(uids)]
        messages += [(channel_of(owner), "s") for owner in self._others(self._due_buckets)]
        messages += [(channel_of(owner), "c") for owner in self._others(self._changed_buckets)]
        self._due.clear()
        for gathered in (self._to_all, self._due_buckets, self._changed_buckets):
            gathered.clear()
        return messages

    def _others(self, buckets: Iterable[int]) -> set[UUID]:
        owners = {self._ownership.owner_of(bucket) for bucket in buckets}
        return {owner for owner in owners if owner is not None} - {self._ownership.node_id}

    # ---------------------------------------------------------------------------------- receiving

    def _receive(self, channel: str, payload: str) -> None:
        kind, rest = payload[:1], payload[1:]
        if channel == ALL_NODES and rest == self._ownership.node_id.hex:
            return  # its own notification
        self.received += 1
        if kind == "d":
            self._receive_due(rest)
        elif kind == "s":
            self._sweeper.sweep_soon()
        elif kind == "c":
            self._changes.read_soon()
        elif kind == "n":
            self._ownership.poke()
        # Other kinds are those of later versions.

    def _receive_due(self, names: str) -> None:
        for uid in uids_of(names):
            bucket = bucket_of(uid)
            # Never forwarded: two nodes that each took the other for the owner would not stop.
            if self._ownership.owns(bucket):
                self._lanes.touch(uid, bucket, from_peer=True)


def channel_of(node_id: UUID) -> str:
    """Return the channel on which only this node listens."""
    return f"hookline_{node_id.hex}"


def named(uids: list[UUID]) -> Iterable[str]:
    """Encode uids as texts, as many in each as a notification can carry."""
    letters = [base64.urlsafe_b64encode(uid.bytes)[:_UID_LETTERS].decode() for uid in uids]
    for begin in range(0, len(letters), _UIDS_PER_MESSAGE):
        yield "".join(letters[begin : begin + _UIDS_PER_MESSAGE])


def uids_of(names: str) -> Iterable[UUID]:
    """Decode the uids in a text, up to the first that is invalid."""
    for begin in range(0, len(names), _UID_LETTERS):
        try:
            yield UUID(bytes=base64.urlsafe_b64decode(f"{names[begin : begin + _UID_LETTERS]}=="))
        except ValueError:
            return
