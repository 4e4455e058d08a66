"""Floods on a node inside a memory limit of the kernel's, at its configured ceiling.

The limit is a cgroup's where one can be made (version 1 or 2), else RLIMIT_DATA; which one is said.
Of a cgroup the node's memory before it entered does not count: the limit is that much lower.
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hookline_service.config.memory import LEAST_MB
from tests.faults.conftest import IS_LONG
from tests.hostile import callers, report
from tests.hostile.scenario import Scenario, play
from tests.hostile.stage import Stage, staged

pytestmark = pytest.mark.timeout(600)

FLOODS = (
    "big messages",
    "gzip without a key",
    "gzip with a key",
    "big messages never ended",
    "lists unread",
    "deliveries unread",
    "streams unread",
    "connection storm",
)
CHOSEN = [one for one in callers.SCENARIOS if one.name in (FLOODS if IS_LONG else FLOODS[:1])]
SECONDS = 10.0 if IS_LONG else 1.0
_MIB = 1 << 20


@contextmanager
def limited(stage: Stage, ceiling_mb: int) -> Iterator[str]:
    """Keep the node within so much memory while inside; what keeps it."""
    left = ceiling_mb * _MIB - int(stage.memory_mb() * 1e6)
    pid = stage.node.process.pid
    for root, setting in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup", root, f"hookline-test-{pid}")
        with suppress(OSError):
            group.mkdir()
            try:
                (group / setting).write_text(str(left))
                (group / "cgroup.procs").write_text(str(pid))
            except OSError:
                group.rmdir()
                raise
            try:
                yield f"a cgroup ({setting})"
            finally:
                with suppress(ProcessLookupError):
                    (group.parent / "cgroup.procs").write_text(str(pid))
                group.rmdir()
            return
    resource.prlimit(pid, resource.RLIMIT_DATA, (ceiling_mb * _MIB, ceiling_mb * _MIB))
    yield "RLIMIT_DATA"


@pytest.mark.parametrize("scenario", CHOSEN, ids=lambda scenario: scenario.name)
async def test_a_node_at_its_ceiling_survives_floods_and_serves_a_known_publisher(
    database_url: str, scenario: Scenario
) -> None:
    async with staged(database_url, HOOKLINE_MEMORY_MB=str(LEAST_MB)) as stage:
        with limited(stage, LEAST_MB) as kept_by:
            result = await play(scenario, stage, SECONDS)
            print(f"{LEAST_MB} MB by {kept_by}: {' · '.join(report.row(result))}")  # noqa: T201
            assert result.is_alive
            assert result.recovery_s is not None
            assert result.memory_peak_mb < LEAST_MB
            assert not result.after.failed
