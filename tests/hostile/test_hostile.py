"""A short part of the suite: some attacks for a moment each, against one node."""

import pytest

from tests.hostile import callers, dns, receivers
from tests.hostile.scenario import play
from tests.hostile.stage import staged

pytestmark = pytest.mark.timeout(180)

SECONDS = 0.5
MEMORY_MAX_MB = 400
"""A node without load has 90."""
SHORT = (
    "gzip without a key",
    "continuation",
    "empty data",
    "hpack bomb",
    "connection storm",
    "receiver: endless body",
    "DNS: time-outs",
)
SCENARIOS = (*callers.SCENARIOS, *receivers.SCENARIOS, *dns.SCENARIOS)
CHOSEN = [scenario for scenario in SCENARIOS if scenario.name in SHORT]


async def test_a_node_survives_attacks_and_serves_a_known_publisher_afterwards(
    database_url: str,
) -> None:
    assert len(CHOSEN) == len(SHORT)
    async with staged(database_url, **dns.RESOLVER) as stage:
        for scenario in CHOSEN:
            result = await play(scenario, stage, SECONDS)
            assert result.is_alive, scenario.name
            assert result.recovery_s is not None, scenario.name
            assert result.memory_peak_mb < MEMORY_MAX_MB, scenario.name
            assert not result.after.failed, scenario.name
