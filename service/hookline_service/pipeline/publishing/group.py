"""A group of calls that share one commit: their rows, their keys, and the answer of each call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from random import Random
from time import monotonic
from typing import NamedTuple
from uuid import UUID

import orjson

from hookline_service.domain.errors import AlreadyExistsError, NotFoundError, Reason
from hookline_service.domain.event import NewEvent, default_source
from hookline_service.domain.ids import EVENT_ID, delivery_id_of, format_type_id, make_uuid7
from hookline_service.domain.names import event_name
from hookline_service.domain.ordering import key_hash_of
from hookline_service.pipeline.dispatch.lane import Lane
from hookline_service.pipeline.publishing.matching import TenantIndex
from hookline_service.store.event_rows import EventRow, row_of
from hookline_service.store.publishing import (
    NO_HISTORY,
    DeliveryRow,
    Key,
    KeyRow,
    PublishRows,
    TakenKey,
)


class Published(NamedTuple):
    """The result of one event of a call."""

    event_id: UUID
    deduplicated: bool
    delivery_count: int


CallAnswer = list[Published] | AlreadyExistsError


class LostWrite(NamedTuple):
    """A write of a call whose answer was lost, until it is looked up (rule 3 of the data path)."""

    witness: UUID | None
    """An event that is stored if, and only if, the write was; None: it had nothing to store."""
    answer: CallAnswer
    """The answer of the call if the write is stored."""


class PublishCall:
    """One PublishEvents call that waits for its answer."""

    __slots__ = (
        "contexts",
        "data_bytes",
        "done",
        "events",
        "fan_out",
        "index",
        "losses",
        "lost",
        "misses",
        "queued_s",
        "revisions",
        "stream",
    )

    def __init__(
        self,
        index: TenantIndex,
        events: list[NewEvent],
        revisions: list[int],
        data_bytes: int,
        done: asyncio.Future[list[Published]],
        stream: object | None = None,
    ) -> None:
        self.events = events
        self.revisions = revisions
        self.data_bytes = data_bytes
        self.done = done
        self.queued_s = monotonic()
        """When it was queued, monotonic."""
        self.stream = stream
        """Calls of one stream keep their order; None: the call is of no stream."""
        self.contexts: Sequence[bytes | None] | None = None
        """The packed trace context of each event; None: none of them is traced."""
        self.misses = 0
        """How many writes found that the epoch had changed."""
        self.losses = 0
        """How many writes were lost and stored nothing."""
        self.lost: LostWrite | None = None
        """A write that may have stored its events. The call must not be written again, nor be
        refused as not stored, before it is looked up."""
        self.match(index)

    def match(self, index: TenantIndex) -> None:
        """Match its events with an index; sets `fan_out`, the number of deliveries they make."""
        self.index = index
        match = index.match
        self.fan_out = sum([len(match(event.type)) for event in self.events])

    def context_of(self, position: int) -> bytes | None:
        """Return the trace context of an event; None: it is not traced."""
        return None if self.contexts is None else self.contexts[position]

    def succeed(self, results: list[Published]) -> None:
        """Answer OK."""
        if not self.done.done():
            self.done.set_result(results)

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # marks it as retrieved: the caller may have given up

    def settle(self, answer: CallAnswer) -> None:
        """Answer as decided by its idempotency keys."""
        if isinstance(answer, AlreadyExistsError):
            self.fail(answer)
        else:
            self.succeed(answer)


class Placed(NamedTuple):
    """One event of a call with its rows."""

    event_id: UUID
    row: EventRow
    deliveries: list[DeliveryRow]
    key: KeyRow | None


class Group:
    """Calls that commit together."""

    def __init__(self, now_ms: int, random: Random) -> None:
        self.now_ms = now_ms
        self._random = random
        self.calls: list[PublishCall] = []
        self.followers: list[PublishCall] = []
        """Calls that use a key of this group: answered, or queued again, after its commit."""
        self._held_streams: set[object] = set()
        self.lock_timeout_s: float | None = None
        """None: it waits for no open change of a tenant. Else it waits so long for the epochs of
        its tenants, and is matched again and written while they are locked."""
        self.not_found: NotFoundError | None = None
        """Set when its tenant was found to be deleted while it was matched again."""
        self.rows = PublishRows()
        """The rows of all its calls."""
        self.rows_to_store = self.rows
        """All rows, until `settle` leaves some out."""
        self.event_count = 0
        self.data_bytes = 0
        self.announced: list[tuple[Lane, UUID]] = []
        self._placed: list[list[Placed | int]] = []
        """Per call and event: its rows, or the position of the equal event of the same call."""
        self._leaders: dict[Key, tuple[int, int]] = {}
        """The call and the event that hold a key, by their positions."""
        self._taken: Mapping[Key, TakenKey] = {}
        self._settled: list[CallAnswer] = []
        """The answer of each call if its tenant passes; empty: no key was found to be taken."""
        self._answers: dict[int, CallAnswer] = {}
        """The answers given after the group was stored."""

    def add(self, call: PublishCall) -> None:
        """Add a call; one that uses a key of the group becomes its follower.

        So do later calls of that one's stream: they must not be stored before it.
        """
        uid = call.index.uid
        keys = [(uid, event.idempotency_key) for event in call.events if event.idempotency_key]
        if call.stream in self._held_streams or any(key in self._leaders for key in keys):
            self.followers.append(call)
            if call.stream is not None:
                self._held_streams.add(call.stream)
            return
        try:
            self._placed.append(self._place(call))
        except AlreadyExistsError as error:
            call.fail(error)
            return
        for position, event in enumerate(call.events):
            if event.idempotency_key:
                key = (uid, event.idempotency_key)
                self._leaders.setdefault(key, (len(self.calls), position))
        self.calls.append(call)
        self.event_count += len(call.events)
        self.data_bytes += call.data_bytes

    def _place(self, call: PublishCall) -> list[Placed | int]:
        """Make the rows of a call. Raises `AlreadyExistsError` if two events have one key."""
        rows = self.rows
        firsts: dict[str, tuple[int, bytes]] = {}
        placed: list[Placed | int] = []
        count = len(rows.events)
        for position, event in enumerate(call.events):
            fingerprint = b""
            if event.idempotency_key:
                fingerprint = fingerprint_of(event, call.index.tenant_id)
                first = firsts.setdefault(event.idempotency_key, (position, fingerprint))
                if first[0] != position:
                    if first[1] != fingerprint:
                        raise _reused(position, None)
                    placed.append(first[0])
                    continue
            count += 1
            placed.append(self._rows_of(call, position, fingerprint, count))
        for item in placed:
            if not isinstance(item, int):
                rows.events.append(item.row)
                rows.deliveries += item.deliveries
                if item.key is not None:
                    rows.keys.append(item.key)
        # Two indexes of a tenant, one of them old, may meet here: the older epoch, and so neither
        # writes unless both may. Two histories likewise: none is on both.
        history_id = call.index.history_id
        rows.history_id = history_id if rows.history_id in {None, history_id} else NO_HISTORY
        epoch, uid = call.index.epoch, call.index.uid
        rows.epochs[uid] = min(rows.epochs.get(uid, epoch), epoch)
        return placed

    def _rows_of(self, call: PublishCall, position: int, fingerprint: bytes, place: int) -> Placed:
        tenant_uid = call.index.uid
        event = call.events[position]
        event_id = make_uuid7(self.now_ms, self._random.getrandbits(74))
        deliveries = [
            (
                tenant_uid,
                route.bucket,
                route.first_delay_s,
                place,
                delivery_id_of(event_id, number, route.bucket),
                route.subscription_uid,
                event_id,
                key_hash_of(event.ordering_key, event_id) if route.is_ordered else None,
            )
            for number, route in enumerate(call.index.match(event.type))
        ]
        key = None
        if fingerprint:
            key = (tenant_uid, event.idempotency_key, event_id, fingerprint, len(deliveries))
        row = row_of(
            tenant_uid, event_id, event, call.revisions[position], call.context_of(position)
        )
        return Placed(event_id, row, deliveries, key)

    def tenant_ids(self) -> set[str]:
        """Return the tenants of its calls."""
        return {call.index.tenant_id for call in self.calls}

    def place_again(self, index_of: Callable[[str], TenantIndex | None]) -> None:
        """Match its calls with the current indexes: makes other rows, with other ids."""
        self.rows = PublishRows()
        for call in self.calls:
            call.match(index_of(call.index.tenant_id) or call.index)
        self._placed = [self._place(call) for call in self.calls]
        self.settle(self._taken)

    def settle(self, taken: Mapping[Key, TakenKey]) -> None:
        """Decide by the taken keys which events are refused or deduplicated.

        Nothing of those is written, not even a key (rule 7 of the data path).
        """
        self._taken = taken
        self._settled = [
            _settle_call(call, placed, taken)
            for call, placed in zip(self.calls, self._placed, strict=True)
        ]
        rows = self.rows_to_store = PublishRows(self.rows.history_id, self.rows.epochs)
        for _, _, item in self.stored(set(rows.epochs)):
            rows.events.append(item.row)
            place = len(rows.events)
            rows.deliveries += [(*row[:3], place, *row[4:]) for row in item.deliveries]
            if item.key is not None:
                rows.keys.append(item.key)

    def stored(self, passed: set[UUID]) -> Iterator[tuple[PublishCall, int, Placed]]:
        """Yield the events that this group writes: the call, the position in it, the rows."""
        for number, call in enumerate(self.calls):
            answer = self._settled[number] if self._settled else None
            if call.index.uid not in passed or isinstance(answer, AlreadyExistsError):
                continue
            for position, item in enumerate(self._placed[number]):
                if isinstance(item, int) or (answer and answer[position].deduplicated):
                    continue
                yield call, position, item

    def witnesses(self) -> dict[UUID, UUID]:
        """Return for each tenant one event that is stored if, and only if, its other events are."""
        found: dict[UUID, UUID] = {}
        for call, _, item in self.stored(set(self.rows.epochs)):
            found.setdefault(call.index.uid, item.event_id)
        return found

    def answer(self, passed: set[UUID]) -> list[PublishCall]:
        """Answer the calls whose tenants passed; return the others, to be matched again."""
        again: list[PublishCall] = []
        for number, call in enumerate(self.calls):
            if call.index.uid not in passed:
                again.append(call)
                continue
            self._answers[number] = answer = self._answer_of(number)
            call.settle(answer)
        return again

    def _answer_of(self, number: int) -> CallAnswer:
        """Return the answer of a call whose tenant passed."""
        if self._settled:
            return self._settled[number]
        return _settle_call(self.calls[number], self._placed[number], {})

    def mark_lost(self, locked: set[UUID]) -> None:
        """Mark the calls of these tenants: whether they are stored is looked up later."""
        witnesses = self.witnesses()
        for number, call in enumerate(self.calls):
            uid = call.index.uid
            if uid in locked:
                call.lost = LostWrite(witnesses.get(uid), self._answer_of(number))

    def fail(self, error: Exception) -> None:
        """Answer each of its calls with an error."""
        for call in self.calls:
            call.fail(error)

    def fail_followers(self, error: Exception) -> None:
        """Answer each of its followers with an error: none of them was written."""
        for call in self.followers:
            call.fail(error)
        self.followers.clear()

    def answer_followers(self) -> list[PublishCall]:
        """Answer the followers with all keys stored here; return the others, to be queued again."""
        return [call for call in self.followers if not self._answer_follower(call)]

    def _answer_follower(self, call: PublishCall) -> bool:
        results: list[Published] = []
        for position, event in enumerate(call.events):
            leader = self._leaders.get((call.index.uid, event.idempotency_key))
            answer = self._answers.get(leader[0]) if leader else None
            if leader is None or answer is None or isinstance(answer, AlreadyExistsError):
                return False
            first, tenant_id = answer[leader[1]], call.index.tenant_id
            leading = self.calls[leader[0]].events[leader[1]]
            if fingerprint_of(leading, tenant_id) != fingerprint_of(event, tenant_id):
                call.fail(_reused(position, _name_of(call, first.event_id)))
                return True
            results.append(first._replace(deduplicated=True))
        call.succeed(results)
        return True


def _settle_call(
    call: PublishCall, placed: list[Placed | int], taken: Mapping[Key, TakenKey]
) -> CallAnswer:
    results: list[Published] = []
    for position, item in enumerate(placed):
        if isinstance(item, int):
            results.append(results[item]._replace(deduplicated=True))
            continue
        key = item.key
        first = taken.get((key[0], key[1])) if key is not None and taken else None
        if key is None or first is None:
            results.append(Published(item.event_id, False, len(item.deliveries)))  # noqa: FBT003
        elif first.fingerprint == key[3]:
            results.append(Published(first.event_id, True, first.delivery_count))  # noqa: FBT003
        else:
            return _reused(position, _name_of(call, first.event_id))
    return results


def _name_of(call: PublishCall, event_id: UUID) -> str:
    return event_name(call.index.tenant_id, format_type_id(EVENT_ID, event_id))


def _reused(position: int, name: str | None) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"events[{position}].idempotency_key: the key was already used for a different event",
        Reason.IDEMPOTENCY_KEY_REUSED,
        metadata={"index": str(position)} | ({"name": name} if name else {}),
    )


def fingerprint_of(event: NewEvent, tenant_id: str) -> bytes:
    """Return a 16-byte hash of an event without its `occur_time`: equal events have equal hashes.

    A source that says what would be the default is no other source.
    """
    source = event.source or default_source(tenant_id)
    head = orjson.dumps(
        [
            event.type, source, event.subject, event.ordering_key, event.content_type,
            event.external_id, event.data_schema, event.is_json, dict(event.attributes),
        ],
        option=orjson.OPT_SORT_KEYS,
    )  # fmt: skip
    digest = blake2b(head, digest_size=16)
    digest.update(event.data)
    return digest.digest()
