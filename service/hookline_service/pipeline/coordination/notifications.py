"""Word between nodes: something is due for you, something was changed, somebody came or left.

Theory of operation. Word only hastens what polling finds by itself: the sweep what is due, the
change log's reader what was changed, the heartbeat who is there. It may be lost, doubled or late; a
failure is counted and nothing else. It goes out after the commit it tells of, on a connection of
its own, one statement at a time. What comes up meanwhile is gathered, and what is due is addressed
only when it goes out: to whom this node then believes the owner to be.

    a node's own channel    d UID UID …   something is due for these subscriptions
                            s             … for more than can be named: sweep
                            c             read the change log
    every node's channel    c NODE        read the change log, said by this node
                            n NODE        look who owns what, said by this node

Where this node owns everything, nothing is said and nothing costs anything.
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
"""How often the connection is asked whether it lives."""
REPEAT_S = 0.5
"""A database that failed is left alone for so long."""
STOP_S = 1.0
"""How long a stop waits for the last word."""
MAX_NAMED = 4_096
"""Subscriptions that are gathered by name; of more, only the buckets."""
_UID_LETTERS = 22
_UIDS_PER_MESSAGE = (MAX_PAYLOAD_BYTES - 1) // _UID_LETTERS


class Notifier:
    """Tells other nodes, and hears from them."""

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
        self._heard_as: UUID | None = None
        self._listen_at_s = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.said = 0
        """Notifications that went out."""
        self.heard = 0
        """Those of other nodes that came in, and were of use."""
        self.failures = 0
        """Statements that failed; what they were to say, polling finds."""
        store.on_heard = self._hear
        ownership.on_moved = self.tell_moved
        changes.on_foreign = self.tell_changed

    def start(self) -> None:
        """Begin to hear; what was to be told before is told now."""
        self._task = asyncio.create_task(self._run(), name="notifier")

    async def stop(self) -> None:
        """Say what is still to be said, if that can be done soon, and end."""
        self._is_stopping = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=STOP_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._store.close()

    # ------------------------------------------------------------------------------ what is told

    def tell_due(self, subscription_uid: UUID, bucket: int) -> None:
        """Something was committed for a subscription of another node's."""
        if len(self._due) < MAX_NAMED:
            self._due[subscription_uid] = bucket
        else:
            self._due_buckets.add(bucket)
        self._wake.set()

    def tell_changed(self, bucket: int | None) -> None:
        """The change log has news of a bucket of another node's; None: for everybody."""
        if bucket is None:
            self._to_all.add("c")
        else:
            self._changed_buckets.add(bucket)
        self._wake.set()

    def tell_moved(self) -> None:
        """Who owns what has changed by this node's doing: it came, took, gave or left."""
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
        """Hear what is to be heard, and say what was gathered."""
        node_id, now_s = self._ownership.node_id, asyncio.get_running_loop().time()
        if now_s >= self._listen_at_s or node_id != self._heard_as:
            if await self._store.listen([channel_of(node_id), ALL_NODES]):
                self._ownership.poke()
                self._changes.hear()
                self._sweeper.sweep_soon()
            self._heard_as = node_id
            self._listen_at_s = now_s + LISTEN_INTERVAL_S
        messages = self._take_messages()
        if messages:
            await self._store.notify(messages)
            self.said += len(messages)

    def _take_messages(self) -> list[tuple[str, str]]:
        """What was gathered, addressed as ownership stands at this moment."""
        me = self._ownership.node_id
        messages = [(ALL_NODES, f"{kind}{me.hex}") for kind in sorted(self._to_all)]
        due: defaultdict[UUID, list[UUID]] = defaultdict(list)
        for uid, bucket in self._due.items():
            owner = self._ownership.owner_of(bucket)
            if owner == me:
                self._lanes.touch(uid, bucket)  # it has become ours since
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

    # ------------------------------------------------------------------------------ what is heard

    def _hear(self, channel: str, payload: str) -> None:
        kind, rest = payload[:1], payload[1:]
        if channel == ALL_NODES and rest == self._ownership.node_id.hex:
            return  # its own word
        self.heard += 1
        if kind == "d":
            self._hear_due(rest)
        elif kind == "s":
            self._sweeper.sweep_soon()
        elif kind == "c":
            self._changes.hear()
        elif kind == "n":
            self._ownership.poke()
        # Anything else is a later version's.

    def _hear_due(self, names: str) -> None:
        for uid in uids_of(names):
            bucket = bucket_of(uid)
            # Never passed on: two nodes that each took the other for the owner would not stop.
            if self._ownership.owns(bucket):
                self._lanes.touch(uid, bucket, from_peer=True)


def channel_of(node_id: UUID) -> str:
    """The channel that a node alone hears."""
    return f"hookline_{node_id.hex}"


def named(uids: list[UUID]) -> Iterable[str]:
    """The uids as text, as many in each as a notification carries."""
    letters = [base64.urlsafe_b64encode(uid.bytes)[:_UID_LETTERS].decode() for uid in uids]
    for begin in range(0, len(letters), _UIDS_PER_MESSAGE):
        yield "".join(letters[begin : begin + _UIDS_PER_MESSAGE])


def uids_of(names: str) -> Iterable[UUID]:
    """The uids in a text; nothing, from the first that is none on."""
    for begin in range(0, len(names), _UID_LETTERS):
        try:
            yield UUID(bytes=base64.urlsafe_b64decode(f"{names[begin : begin + _UID_LETTERS]}=="))
        except ValueError:
            return
