"""A real node, while one tenant publishes what makes a validator spend time and memory."""

import asyncio
import base64
import pathlib
from collections.abc import AsyncIterator

import asyncpg
import pytest

from hookline import HooklineClient
from hookline.errors import InvalidArgumentError
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest
from hookline.v1.event_type_pb2 import EventType
from hookline.v1.event_type_service_pb2 import CreateEventTypeRequest
from hookline.v1.tenant_service_pb2 import CreateTenantRequest
from tests.e2e.processes import Node
from tests.schema.hostile import HOSTILE, doubling

pytestmark = pytest.mark.timeout(120)

ORDER = '{"type": "object", "required": ["id"]}'
MEMORY_MIB = 400


@pytest.fixture
async def node(database_url: str) -> AsyncIterator[Node]:
    """A node whose event types were registered before their cost was looked at."""
    connection = await asyncpg.connect(database_url)
    types = [("order", ORDER)]
    types += [(f"hostile-{number}", schema) for number, (schema, _) in enumerate(HOSTILE.values())]
    insert = "INSERT INTO event_types (name, json_schema, state) VALUES ($1, $2, 'ACTIVE')"
    await connection.executemany(insert, types)
    await connection.close()
    settings = {
        "HOOKLINE_DATABASE_URL": database_url,
        "HOOKLINE_MASTER_KEY": base64.b64encode(bytes(32)).decode(),
        "HOOKLINE_AUTH": "off",
        "HOOKLINE_MAX_SCHEMA_CPU_MS": "100",
    }
    with Node(["serve"], settings) as node:
        yield node.ready()
        assert node.stop() == 0


@pytest.fixture
async def client(node: Node) -> AsyncIterator[HooklineClient]:
    async with HooklineClient(node.target, timeout_s=60) as connected:
        yield connected


async def test_another_tenant_is_answered_while_hostile_data_is_checked(
    client: HooklineClient, node: Node
) -> None:
    for tenant in ("evil", "good"):
        await client.tenants.CreateTenant(CreateTenantRequest(tenant_id=tenant))
    attacks = [
        asyncio.create_task(is_accepted(client, "evil", f"hostile-{number}", data))
        for number, (_, data) in enumerate(HOSTILE.values())
    ]
    answered = 0
    while not all(attack.done() for attack in attacks):
        assert await is_accepted(client, "good", "order", b'{"id": 1}')
        answered += 1
    assert answered > len(attacks)
    assert not all([await attack for attack in attacks])
    assert peak_mib(node.process.pid) < MEMORY_MIB


async def test_a_schema_that_is_too_expensive_is_refused_when_it_is_registered(
    client: HooklineClient,
) -> None:
    event_type = EventType(json_schema=doubling("allOf"))
    request = CreateEventTypeRequest(event_type_id="doubling", event_type=event_type)
    with pytest.raises(InvalidArgumentError, match="HOOKLINE_MAX_SCHEMA_CPU_MS"):
        await client.event_types.CreateEventType(request)


async def is_accepted(client: HooklineClient, tenant: str, event_type: str, data: bytes) -> bool:
    """Publish one event; False: its data is refused."""
    event = Event(type=event_type, json_data=data.decode())
    request = PublishEventsRequest(tenant=f"tenants/{tenant}", events=[event])
    try:
        await client.events.PublishEvents(request)
    except InvalidArgumentError:
        return False
    return True


def peak_mib(pid: int) -> int:
    """The most memory that a process has had."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) // 1024
