"""The floor: the cost of the unavoidable parts of a delivery alone.

    echo      a grpc.aio server that returns each batch
    insert    UNNEST inserts of the same rows, into tables of the same columns, same Postgres
    post      raw asyncio POSTs of the same size, to the same receiver

Measured right after a scenario, on its rows. `efficiency` is the floor's CPU per delivery over the
real one's: Hookline's and Postgres's together.
"""

from __future__ import annotations

import json
from dataclasses import replace

from tests.bench.machine import cpu_s
from tests.bench.measure import Figures
from tests.bench.processes import BenchError, Child
from tests.bench.publisher import Load
from tests.bench.stage import SECRET, Stage

SECONDS = 2.0
_ROWS_MAX = 1_000
"""Per statement; a group commit has at most the events of the calls in flight."""
_ROWS_ALL = 40_000
"""Of all statements together, because the kernel counts CPU in hundredths of a second."""
_CONNECTIONS = 64


async def with_floor(
    stage: Stage, load: Load, figures: Figures, *, is_sent: bool = True
) -> Figures:
    """Return the figures with those of the floor. `is_sent`: otherwise events are only stored."""
    echo_us = await _echo(stage, load) / load.fan_out
    insert_us, postgres_us = await _insert(stage, load)
    post_us = await _post(stage, load) if is_sent else 0.0
    floor_us = echo_us + insert_us + post_us + postgres_us
    real_us = figures["hookline_cpu_us"] + figures["postgres_cpu_us"]
    return figures | {
        "floor_echo_us": echo_us,
        "floor_insert_us": insert_us,
        "floor_post_us": post_us,
        "floor_postgres_us": postgres_us,
        "efficiency": floor_us / real_us,
    }


async def _start(stage: Stage, *arguments: str) -> Child:
    return await Child.start(
        stage.deployment.logs / "floor.log", "tests.bench.floor_load", *arguments
    )


async def _echo(stage: Stage, load: Load) -> float:
    """Return the server's CPU per event in µs."""
    server = await _start(stage, "echo")
    try:
        address = await server.line()
        before_s = cpu_s(server.pid)
        done = await stage.publish(
            replace(load, servers=[address], seconds=SECONDS, backlog=0, publisher=1)
        )
        return (cpu_s(server.pid) - before_s) / done.events * 1e6
    finally:
        await server.end()


async def _insert(stage: Stage, load: Load) -> tuple[float, float]:
    """Return the CPU of the inserting process and of Postgres per delivery, in µs."""
    rows = min(_ROWS_MAX, load.in_flight * load.batch * load.fan_out)
    spec = {
        "url": stage.database.url,
        "events": max(1, rows // load.fan_out),
        "fan_out": load.fan_out,
        "statements": max(1, _ROWS_ALL // rows),
    }
    process = await _start(stage, "insert", json.dumps(spec))
    try:
        await process.line()
        before_s = cpu_s(stage.postmaster_pid)
        result = json.loads(await process.ask("go"))
        postgres_s = cpu_s(stage.postmaster_pid) - before_s
    finally:
        await process.end()
    return result["cpu_s"] / result["count"] * 1e6, postgres_s / result["count"] * 1e6


async def _post(stage: Stage, load: Load) -> float:
    """Return the CPU of the sending process per delivery, in µs."""
    before = stage.counters.received()
    spec = {
        "port": stage.ports[0][0],
        "secret": SECRET,
        "data_bytes": load.data_bytes,
        "connections": _CONNECTIONS,
        "seconds": SECONDS,
    }
    process = await _start(stage, "post", json.dumps(spec))
    try:
        result = json.loads(await process.line())
    finally:
        await process.end()
    if stage.counters.received() - before < result["count"]:
        raise BenchError("the receiver did not get what the floor sent")
    stage.check_signatures()
    return float(result["cpu_s"] / result["count"] * 1e6)
