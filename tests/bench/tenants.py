"""Scenario 13: many tenants share each commit; the rate of the statement without the API."""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random
from uuid import UUID

from hookline_service.domain.ids import make_uuid7
from hookline_service.store.database import Database
from hookline_service.store.publishing import PublishRows, PublishStore
from tests.bench.measure import Figures
from tests.bench.scenario import Extent, Scenario, least
from tests.bench.stage import Stage

_EVENTS = 500
"""Of a group: as many as a node puts into one."""
_TENANTS = 500
_FAN_OUTS = (1, 10, 100)
_DATA = b'{"filler":"' + b"x" * 487 + b'"}'
_KEY_WINDOW_S = 60.0


class _Groups:
    """Groups of events of some tenants, each event for so many subscriptions."""

    def __init__(self, tenants: Sequence[UUID], fan_out: int) -> None:
        self._tenants = tenants
        self._fan_out = fan_out
        self._random = Random(1)

    def make(self) -> PublishRows:
        """One group."""
        rows = PublishRows(epochs=dict.fromkeys(self._tenants, 1))
        now_ms = time.time_ns() // 1_000_000
        for place in range(1, _EVENTS + 1):
            uid = self._tenants[place % len(self._tenants)]
            event_id = self._id(now_ms)
            rows.events.append(
                (uid, event_id, None, 0, True, "order.created", "", None, None, None, None, None,
                 None, None, _DATA, None)
            )  # fmt: skip
            rows.deliveries += [
                (uid, number % 256, 3600.0, place, self._id(now_ms), event_id, event_id, None)
                for number in range(self._fan_out)
            ]
        return rows

    def _id(self, now_ms: int) -> UUID:
        return make_uuid7(now_ms, self._random.getrandbits(74))


async def tenants_in_a_group(stage: Stage, extent: Extent) -> Figures:
    """The same groups of one tenant and of 500, in turn; what a second of the statement stores."""
    tenants = await stage.database.add_tenants(_TENANTS)
    database = Database(stage.database.url, timeout_s=60.0)
    store = PublishStore(database.session("bench publish"), _KEY_WINDOW_S)
    figures: Figures = {}
    for fan_out in _FAN_OUTS:
        alone = _Groups(tenants[:1], fan_out)
        together = _Groups(tenants, fan_out)
        spent_s = {alone: 0.0, together: 0.0}
        groups = 0
        while sum(spent_s.values()) < extent.seconds(6.0) or groups < 2:
            for kind in spent_s:
                rows = kind.make()
                began_s = time.perf_counter()
                await store.write(rows)
                if groups:  # the first prepares the statement
                    spent_s[kind] += time.perf_counter() - began_s
            groups += 1
        events = (groups - 1) * _EVENTS
        figures |= {
            f"alone_per_second_{fan_out}": events / spent_s[alone],
            f"together_per_second_{fan_out}": events / spent_s[together],
            f"share_{fan_out}": spent_s[alone] / spent_s[together],
        }
        await stage.database.forget_pending()
    await store.close()
    return figures | {"per_second": figures["together_per_second_1"]}


SCENARIOS = (
    Scenario(
        number="13",
        name="500 tenants a group",
        title="500 tenants in each commit, fan-out 1, 10, 100",
        play=tenants_in_a_group,
        goals=tuple(least(f"share_{fan_out}", 0.75) for fan_out in _FAN_OUTS),
        unit="events",
    ),
)
