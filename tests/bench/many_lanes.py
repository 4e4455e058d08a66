"""Many subscriptions on one node: `python -m tests.bench.many_lanes waiting 1000000`.

waiting  each has a retry tomorrow: cost of a turn of the sweep
paused   each has a due delivery: permanent cost for the node and Postgres
fan-out  one event for all of them, none in memory: waiting time of another tenant

One node in this process, with a Postgres of its own; figures are CPU, but for the waiting times.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, process_time
from uuid import UUID

import uvloop

from hookline_service.domain.ids import bucket_of, delivery_id_of, format_type_id
from hookline_service.store.secrets import SecretPlace
from tests.bench.machine import cpu_s
from tests.pipeline.receiver import Receiver
from tests.pipeline.rig import SECRET, Rig, order_created, running
from tests.postgres import PostgresServer, embedded
from tests.waiting import until

BATCH = 5_000
SETTLE_S = 15.0
MEASURED_S = 20.0
TURNS = 50
PATIENCE_S = 300.0


async def main(url: str, what: str, count: int) -> None:
    """Create the rows, measure, print."""
    measures: dict[str, Callable[[Rig, Receiver, int], Awaitable[None]]] = {
        "waiting": waiting,
        "paused": paused,
        "fan-out": fan_out,
    }
    async with Receiver() as receiver, running(url) as rig:
        await measures[what](rig, receiver, count)


async def waiting(rig: Rig, receiver: Receiver, count: int) -> None:
    """Measure a turn of the sweep over lanes whose retries are due tomorrow."""
    await rig.stop_reading()
    await subscriptions(rig, await rig.tenant(), receiver.url, count, due_s=86_400.0)
    await rig.database.fetch("ANALYZE pending_deliveries")
    await rig.sweeper.sweep()
    root = await postmaster(rig)
    database_s, node_s, began_s = cpu_s(root), process_time(), perf_counter()
    for _ in range(TURNS):
        rig.sweeper.sweep_soon()
        await rig.sweeper.sweep()
    say(
        f"{count} waiting lanes, a turn of the sweep: "
        f"{(perf_counter() - began_s) / TURNS * 1e3:.1f} ms, of that CPU of the node "
        f"{(process_time() - node_s) / TURNS * 1e3:.1f} ms, of Postgres "
        f"{(cpu_s(root) - database_s) / TURNS * 1e3:.1f} ms"
    )


async def paused(rig: Rig, receiver: Receiver, count: int) -> None:
    """Measure an idle node with paused subscriptions that have due deliveries."""
    tenant_uid = await rig.tenant()
    await subscriptions(rig, tenant_uid, receiver.url, count, state="PAUSED", due_s=0.0)
    await rig.database.fetch("ANALYZE")
    await asyncio.sleep(SETTLE_S)
    root = await postmaster(rig)
    database_s, node_s, began_s = cpu_s(root), process_time(), perf_counter()
    await asyncio.sleep(MEASURED_S)
    took_s = perf_counter() - began_s
    say(
        f"{count} paused subscriptions, each with a delivery due: the node uses "
        f"{(process_time() - node_s) / took_s:.2%} of a core, Postgres "
        f"{(cpu_s(root) - database_s) / took_s:.2%}"
    )


async def fan_out(rig: Rig, receiver: Receiver, count: int) -> None:
    """Publish an event for subscriptions without lanes, and events of another tenant."""
    large, small = await rig.tenant("large"), await rig.tenant("small")
    await subscriptions(rig, large, receiver.url, count)
    for number in range(5):
        await rig.subscription(small, receiver.url, f"n.{number}")
    await rig.database.fetch("ANALYZE")
    await rig.matcher.index("large")
    await rig.matcher.index("small")
    began_s = perf_counter()
    await rig.publisher.publish("large", [order_created()])
    say(f"an event for {count} new lanes: accepted after {perf_counter() - began_s:.2f} s")
    for number in range(5):
        at_s = perf_counter()
        (event,) = await rig.publisher.publish("small", [order_created(type=f"n.{number}")])
        name = format_type_id("evt", event.event_id)
        await until(lambda name=name: name in receiver.counts, "it came", within_s=PATIENCE_S)
        say(f"another tenant's event for a new lane: received after {perf_counter() - at_s:.2f} s")
    await until(lambda: rig.recorder.recorded == count + 5, "all came", within_s=PATIENCE_S)
    say(f"all are recorded after {perf_counter() - began_s:.1f} s")


async def subscriptions(
    rig: Rig,
    tenant_uid: UUID,
    url: str,
    count: int,
    *,
    state: str = "ACTIVE",
    due_s: float | None = None,
) -> None:
    """Create subscriptions, each with a delivery that is due in `due_s` if given."""
    for _ in range(0, count, BATCH):
        uids = [rig.new_uid() for _ in range(BATCH)]
        sealed = [rig.box.seal(SECRET.encode(), SecretPlace(tenant_uid, uid, 1)) for uid in uids]
        await rig.database.fetch(
            """WITH s AS (
                   INSERT INTO subscriptions (changed_epoch, subscription_uid, tenant_uid, bucket,
                                              subscription_id, event_types, url, timeout_ms,
                                              max_in_flight, state, state_reason)
                   SELECT 1, uid, $2, bucket, 's-' || uid, '{*}', $4, 5000, 64, $5::text,
                          CASE WHEN $5 <> 'ACTIVE' THEN 'OPERATOR' END
                   FROM unnest($1::uuid[], $3::smallint[]) AS w (uid, bucket))
               INSERT INTO signing_keys (subscription_uid, version, scheme, sealed_secret)
               SELECT uid, 1, 'HMAC_SHA256', secret
               FROM unnest($1::uuid[], $6::bytea[]) AS w (uid, secret)""",
            uids,
            tenant_uid,
            [bucket_of(uid) for uid in uids],
            url,
            state,
            sealed,
        )
        if due_s is not None:
            await deliveries(rig, tenant_uid, uids, due_s)
    await rig.database.fetch(
        """UPDATE tenants SET epoch = epoch + 1, subscription_count = $2 WHERE tenant_uid = $1""",
        tenant_uid,
        count,
    )


async def deliveries(rig: Rig, tenant_uid: UUID, uids: list[UUID], due_s: float) -> None:
    """Create a retry of one event for each of the subscriptions."""
    event_id, buckets = rig.new_uid(), [bucket_of(uid) for uid in uids]
    await rig.database.fetch(
        """WITH e AS (INSERT INTO events (tenant_uid, event_id, ordinal, is_json, type,
                                          content_type, data)
                      VALUES ($1, $2, 1, true, 'order.created', 'application/json', '{}'))
           INSERT INTO pending_deliveries (bucket, version, due_at, ordinal, delivery_id,
                                           subscription_uid, event_id, attempt_count)
           SELECT bucket, 1, hookline_now() + make_interval(secs => $3), 1, delivery_id, uid, $2, 1
           FROM unnest($4::smallint[], $5::uuid[], $6::uuid[]) AS w (bucket, delivery_id, uid)""",
        tenant_uid,
        event_id,
        due_s,
        buckets,
        [delivery_id_of(event_id, place, bucket) for place, bucket in enumerate(buckets)],
        uids,
    )


async def postmaster(rig: Rig) -> int:
    """Return the pid of the postmaster, from the pid of a backend."""
    ((pid,),) = await rig.database.fetch("SELECT pg_backend_pid()")
    return parent_of(pid)


def parent_of(pid: int) -> int:
    """Return the pid of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def say(line: str) -> None:
    """Print without buffering."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["waiting", "paused", "fan-out"])
    parser.add_argument("count", type=int)
    asked = parser.parse_args()
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        server = PostgresServer(stack.enter_context(embedded(runner)), runner)
        stack.enter_context(server.migrated())
        runner.run(main(stack.enter_context(server.database()), asked.what, asked.count))
