"""A node that stands still, as after SIGSTOP: its loops do nothing, its answers still come."""

from __future__ import annotations

import asyncio

from hookline_service.pipeline.membership.ownership import Ownership
from tests.pipeline.rig import Rig


def freeze(rig: Rig) -> None:
    """From now on the node renews nothing, sweeps nothing and receives nothing."""
    forever = asyncio.Event().wait
    rig.ownership.heartbeat = forever  # type: ignore[method-assign,assignment]
    rig.sweeper.sweep = forever  # type: ignore[method-assign,assignment]
    rig.refiller.refill = forever  # type: ignore[method-assign,assignment]
    rig.changes.read = forever  # type: ignore[method-assign,assignment]


async def wake(rig: Rig) -> None:
    """The first thing that a node does when it runs again."""
    await Ownership.heartbeat(rig.ownership)


async def run_out(rig: Rig) -> None:
    """The node's lease is over, as the database sees it: it was not renewed in time."""
    await rig.database.fetch(
        "UPDATE nodes SET lease_until = clock_timestamp() - interval '1 ms' WHERE node_id = $1",
        rig.ownership.node_id,
    )
