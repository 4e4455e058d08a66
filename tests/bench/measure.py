"""Figures of a load per delivery, from the meters before and after it.

Only distinct deliveries at the receiver count, and they must be exactly the acknowledged ones;
otherwise the run fails.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from tests.bench.processes import BenchError
from tests.bench.publisher import Acknowledged, Load, Mode
from tests.bench.stage import Meters, Stage

Figures = dict[str, float]

WARM_S = 2.0
_FEWEST_FOR_P99 = 100


async def warm(stage: Stage, load: Load) -> None:
    """Run a load without measuring; check that every writing session commits durably."""
    await stage.database.watch_commits()
    await delivered(stage, replace(load, seconds=WARM_S))
    await stage.database.check_commits()
    await stage.latencies_us()


async def delivered(stage: Stage, load: Load) -> Figures:
    """Publish, wait until all deliveries are recorded, and return the cost per delivery."""
    await stage.database.checkpoint()
    before = await stage.meters()
    done = await stage.publish(load)
    count = done.events * load.fan_out
    arrived_s = await stage.arrived(before.distinct + count)
    await stage.drained()
    after = await stage.meters()
    if after.distinct - before.distinct != count:
        raise BenchError(f"{after.distinct - before.distinct} deliveries arrived, not {count}")
    figures = await costs(stage, before, after, count)
    return figures | {"per_second": count / (arrived_s - done.begun_s)}


async def stored(stage: Stage, load: Load) -> tuple[Figures, Acknowledged]:
    """Publish to paused subscriptions, and return the cost per event."""
    await stage.database.checkpoint()
    before = await stage.meters()
    done = await stage.publish(load)
    after = await stage.meters()
    figures = await costs(stage, before, after, done.events)
    return figures | {"per_second": done.events / (done.ended_s - done.begun_s)}, done


async def costs(stage: Stage, before: Meters, after: Meters, count: int) -> Figures:
    """Return the cost per delivery (or event) between two readings."""
    if not count:
        raise BenchError("nothing was delivered")
    hookline_s = after.hookline_cpu_s - before.hookline_cpu_s
    postgres_s = after.postgres_cpu_s - before.postgres_cpu_s
    logged = await stage.database.logged(before.wal_position, after.wal_position)
    figures = {
        "count": count,
        "hookline_cpu_us": hookline_s / count * 1e6,
        "postgres_cpu_us": postgres_s / count * 1e6,
        "elsewhere_cpu_us": after.elsewhere_s(before) / count * 1e6,
        "wal_bytes": (after.wal_position - before.wal_position) / count,
    }
    if logged is None:
        return figures
    return figures | {
        "wal_image_bytes": logged.image_bytes / count,
        "per_commit": count / max(1, logged.commits),
    }


async def paced(stage: Stage, load: Load, group: int = 0) -> tuple[Figures, Acknowledged]:
    """Publish on schedule; return the latencies of a group that accepts all deliveries."""
    if load.mode is not Mode.PACED or not load.is_stamped:
        raise ValueError("only an open-loop load has scheduled times")
    await stage.latencies_us()
    before = stage.counters.distinct(group)
    done = await stage.publish(load)
    figures = await latencies(stage, before, done.events * load.fan_out, group)
    answered = percentiles(done.answers_us)
    return figures | {"ok_p50_ms": answered["p50_ms"], "ok_p99_ms": answered["p99_ms"]}, done


async def latencies(stage: Stage, before: int, count: int, group: int = 0) -> Figures:
    """Wait for further deliveries to a group; return their latencies since schedule."""
    await stage.arrived(before + count, group)
    stage.check_signatures()
    measured = (await stage.latencies_us())[group]
    if len(measured) < count:
        raise BenchError(f"{len(measured)} latencies of {count} deliveries")
    return percentiles(measured)


def percentiles(latencies_us: Sequence[int]) -> Figures:
    """Return the median and the 99th percentile, in milliseconds."""
    if len(latencies_us) < _FEWEST_FOR_P99:
        raise BenchError(f"{len(latencies_us)} latencies do not make a 99th percentile")
    cuts = statistics.quantiles(latencies_us, n=100)
    return {"p50_ms": cuts[49] / 1_000, "p99_ms": cuts[98] / 1_000}
