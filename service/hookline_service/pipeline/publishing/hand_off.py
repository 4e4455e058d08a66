"""What a group needs of its node: a moment and chance to begin with, and lanes to end in.

Ids are announced to the lanes before the commit and withdrawn after it; what was committed goes
straight into the lanes that this node owns, without a word from Postgres.
"""

from __future__ import annotations

from random import Random
from uuid import UUID

from hookline_service.domain.event import accepted
from hookline_service.domain.ids import EVENT_ID, format_type_id
from hookline_service.domain.instants import from_unix_ms
from hookline_service.pipeline.clock import DatabaseTime
from hookline_service.pipeline.dispatch.lane import Message
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.publishing.group import Group, PublishCall


class GroupBuilder:
    """What groups need of the node: time, randomness, and the lanes to hand over to."""

    def __init__(self, time: DatabaseTime, random: Random, lanes: Lanes) -> None:
        self._time = time
        self._random = random
        self._lanes = lanes

    def new_group(self) -> Group:
        """An empty group, of this moment by the database's clock."""
        return Group(self._time.unix_ms(), self._random)

    def announce(self, group: Group) -> None:
        """Tell the lanes which ids the commit may write, so that no refill takes them meanwhile."""
        announce = self._lanes.announce
        for row in group.rows.deliveries:
            if row[7] is not None:
                continue  # of an ordered subscription: nothing is handed over
            lane = announce(row[5], row[4])
            if lane is not None:
                group.announced.append((lane, row[4]))

    def withdraw(self, group: Group, *, may_have_written: bool = False) -> None:
        """The commit is over, and nothing is handed over."""
        for lane, delivery_id in group.announced:
            lane.announced.discard(delivery_id)
        group.announced.clear()
        if may_have_written:
            for row in group.rows.deliveries:
                self._lanes.touch(row[5], row[1], tenant_uid=row[0])

    def hand_over(self, group: Group, passed: set[UUID]) -> None:
        """What was committed goes straight into the lanes that this node owns.

        It is withdrawn after: a lane takes only what was announced to it.
        """
        try:
            self._hand_over(group, passed)
        finally:
            self.withdraw(group)

    def _hand_over(self, group: Group, passed: set[UUID]) -> None:
        lanes = self._lanes
        for call, position, placed in group.stored(passed):
            message: Message | None = None
            for row in placed.deliveries:
                if row[2] > 0:
                    continue  # due later: the sweep finds it in time
                lane = lanes.get(row[5])
                if lane is None:
                    lanes.touch(row[5], row[1], tenant_uid=row[0])
                    continue
                if row[7] is not None:
                    lanes.next_of_key(lane, row[7])
                    continue
                if message is None:
                    message = _message_of(call, position, placed.event_id, group.now_ms)
                lanes.hand_over(lane, row[4], message)


def _message_of(call: PublishCall, position: int, event_id: UUID, now_ms: int) -> Message:
    event, index = call.events[position], call.index
    stored = accepted(
        event,
        event_id,
        index.uid,
        index.tenant_id,
        call.revisions[position],
        from_unix_ms(now_ms),
        call.context_of(position),
    )
    return Message(stored, format_type_id(EVENT_ID, event_id))
