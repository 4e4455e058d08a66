"""`hookline dev`, killed again and again while it delivers, with its Postgres or without."""

import asyncio
import os
import pathlib
import random
import signal

import pytest

from hookline import HooklineClient
from hookline.v1.event_pb2 import Event
from hookline.v1.subscription_service_pb2 import CreateSubscriptionRequest
from tests.e2e.processes import Dev, data_directory, postgres_processes
from tests.faults.oracle import Oracle
from tests.faults.publishing import TENANT
from tests.faults.target import Target
from tests.waiting import until

pytestmark = pytest.mark.timeout(1_800)

EVENTS = [Event(type="fault.dev", json_data="{}")] * 500
MAX_IN_FLIGHT = 200


async def start(data_dir: pathlib.Path) -> Dev:
    dev = Dev(data_dir, HOOKLINE_MAX_IN_FLIGHT=str(MAX_IN_FLIGHT))
    await asyncio.to_thread(dev.ready)
    return dev


async def test_killed_while_it_delivers_it_loses_nothing_of_2000_events_each_time(
    tmp_path: pathlib.Path, rounds: int, chance: random.Random
) -> None:
    oracle = Oracle(tmp_path / "acknowledged")
    async with Target() as target:
        with data_directory() as data_dir:
            for round_ in range(rounds):
                with await start(data_dir) as dev:
                    async with HooklineClient(dev.target) as client:
                        if round_ == 0:
                            request = CreateSubscriptionRequest(
                                tenant=TENANT, subscription_id="all"
                            )
                            request.subscription.event_types.append("*")
                            request.subscription.http.url = target.url()
                            await client.subscriptions.CreateSubscription(request)
                        enough = target.arrivals + chance.randint(1, 1_500)
                        for _ in range(4):
                            results = await client.publish(TENANT, EVENTS)
                            oracle.acknowledge([result.name for result in results])
                    await until(
                        lambda enough=enough: target.arrivals >= enough, "some are delivered"
                    )
                    dev.process.kill()
                    dev.process.wait()
                if chance.random() < 0.5:
                    for postmaster in postgres_processes(data_dir):
                        os.kill(postmaster, signal.SIGKILL)
            with await start(data_dir) as dev:
                ids = oracle.ids()
                await until(lambda: set(target.counts) == ids, "all are delivered", within_s=60)
                assert dev.stop() == 0
    assert target.duplicates <= rounds * MAX_IN_FLIGHT
