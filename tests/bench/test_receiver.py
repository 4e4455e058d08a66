"""The receiver counts each delivery once, and detects invalid signatures."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.bench.counters import Counters
from tests.bench.processes import BenchError, Child, start_receiver
from tests.bench.receiver import Behaviour, Group
from tests.waiting import until

KEY = b"a secret of thirty-two bytes, or so"
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@dataclass
class Played:
    process: Child
    ports: list[list[int]]
    counters: Counters


@asynccontextmanager
async def receiving(directory: Path, *groups: Group) -> AsyncIterator[Played]:
    """Receivers while inside."""
    with Counters(directory / "counters") as counters:
        process, ports = await start_receiver(
            directory, counters.path, SECRET, [asdict(group) for group in groups]
        )
        try:
            yield Played(process, ports, counters)
        finally:
            await process.end()


def request(webhook_id: str, *, path: str = "/hook", data: str = "{}", key: bytes = KEY) -> bytes:
    """A signed request."""
    body = f'{{"type":"order.created","data":{data}}}'.encode()
    signed = b".".join([webhook_id.encode(), b"1735689600", body])
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256))
    head = (
        f"POST {path} HTTP/1.1\r\nhost: receiver\r\nwebhook-id: {webhook_id}\r\n"
        f"webhook-timestamp: 1735689600\r\nwebhook-signature: v1,{signature.decode()}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def send(port: int, *requests: bytes) -> bytes:
    """Send requests over one connection; the status lines of as many answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"".join(requests))
        answers = [await reader.readuntil(b"\r\n\r\n") for _ in requests]
        return b"".join(answer.partition(b"\r\n")[0] + b"\n" for answer in answers)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_repeated_delivery_is_counted_once(tmp_path: Path) -> None:
    async with receiving(tmp_path, Group()) as played:
        twice = request("evt_1"), request("evt_1"), request("evt_1", path="/other")
        await send(played.ports[0][0], *twice)
        assert (played.counters.received(), played.counters.distinct()) == (3, 2)


@pytest.mark.parametrize("key, mismatched", [(KEY, 0), (b"another", 1)])
async def test_one_signature_in_a_hundred_is_verified(
    tmp_path: Path, key: bytes, mismatched: int
) -> None:
    async with receiving(tmp_path, Group()) as played:
        requests = [request(f"evt_{number}", key=key) for number in range(100)]
        await send(played.ports[0][0], *requests)
        assert played.counters.mismatched == mismatched


async def test_groups_have_separate_behaviour_and_counters(tmp_path: Path) -> None:
    groups = Group(ports=2), Group(Behaviour.REFUSE), Group(Behaviour.HANG)
    async with receiving(tmp_path, *groups) as played:
        accepting, refusing, hanging = played.ports
        assert await send(accepting[1], request("evt_1")) == b"HTTP/1.1 200 OK\n"
        refused = await send(refusing[0], request("evt_1"))
        assert refused == b"HTTP/1.1 503 Service Unavailable\n"
        _, writer = await asyncio.open_connection("127.0.0.1", hanging[0])
        writer.write(request("evt_1"))
        await until(lambda: played.counters.received(2) == 1, "the request that is not answered")
        writer.close()
        assert [played.counters.received(group) for group in range(3)] == [1, 1, 1]


async def test_latency_counts_from_the_scheduled_time(tmp_path: Path) -> None:
    async with receiving(tmp_path, Group()) as played:
        stamped = request("evt_1", data='{"t":0,"filler":""}')
        await send(played.ports[0][0], stamped, request("evt_2"))
        ((latency_us,),) = json.loads(await played.process.ask("latencies"))
        assert latency_us > 0
        assert json.loads(await played.process.ask("latencies")) == [[]]


async def test_error_of_an_ended_process_names_its_log(tmp_path: Path) -> None:
    process = await Child.start(tmp_path / "floor.log", "tests.bench.floor_load", "nonsense")
    try:
        with pytest.raises(BenchError, match=r"floor\.log:\n.*cannot load with \['nonsense'\]"):
            await process.line()
    finally:
        await process.end()
