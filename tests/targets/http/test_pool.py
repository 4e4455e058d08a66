"""The idle pool decides which connection is taken, kept and evicted; it closes none itself."""

from __future__ import annotations

import asyncio

from hookline_service.targets.http.answer import AnswerReader
from hookline_service.targets.http.connection import Connection, Origin
from hookline_service.targets.http.transport import IdlePool, WebhookTransport
from tests.targets.http.conftest import LOOPBACK

HERE = Origin("https", "a.test", 443)
THERE = Origin("https", "b.test", 443)


OWNER = WebhookTransport(egress=LOOPBACK)


def connection_to(origin: Origin) -> Connection:
    """Return an unused connection."""
    return Connection(origin, "127.0.0.1", OWNER, AnswerReader(), asyncio.get_running_loop())


def pool(per_origin_max: int = 10, total_max: int = 10) -> IdlePool:
    return IdlePool(per_origin_max=per_origin_max, total_max=total_max, idle_timeout_s=30.0)


async def test_most_recently_used_connection_is_taken_first_and_only_by_its_origin() -> None:
    idle = pool()
    cold, warm, other = connection_to(HERE), connection_to(HERE), connection_to(THERE)
    for now, connection in enumerate((cold, warm, other)):
        assert idle.put(connection, float(now)) is None
    assert [idle.take(HERE), idle.take(HERE), idle.take(HERE)] == [warm, cold, None]
    assert idle.take(THERE) is other
    assert len(idle) == 0


async def test_another_scheme_or_port_is_another_origin() -> None:
    idle = pool()
    idle.put(connection_to(HERE), 0.0)
    for origin in (HERE._replace(scheme="http"), HERE._replace(port=8443)):
        assert idle.take(origin) is None


async def test_new_connection_of_a_full_origin_is_evicted() -> None:
    idle = pool(per_origin_max=1)
    first, second = connection_to(HERE), connection_to(HERE)
    assert idle.put(first, 0.0) is None
    assert idle.put(second, 1.0) is second
    assert idle.put(connection_to(THERE), 1.0) is None
    assert idle.take(HERE) is first


async def test_full_pool_evicts_the_oldest_connection_of_all_origins() -> None:
    idle = pool(total_max=2)
    oldest, old, new = connection_to(HERE), connection_to(THERE), connection_to(HERE)
    idle.put(oldest, 0.0)
    idle.put(old, 1.0)
    assert idle.put(new, 2.0) is oldest
    idle.discard(oldest)
    assert len(idle) == 2
    assert idle.oldest() is old


async def test_use_of_a_connection_resets_its_idle_time() -> None:
    idle = pool()
    first, second = connection_to(HERE), connection_to(THERE)
    idle.put(first, 0.0)
    idle.put(second, 1.0)
    assert idle.take(HERE) is first
    idle.put(first, 2.0)
    assert idle.oldest() is second
    assert idle.expired(31.0) == [second]
    assert idle.expired(32.0) == [second, first]
    assert idle.expired(30.9) == []


async def test_origin_without_connections_is_removed() -> None:
    """A hundred thousand targets, each sent to once, must leave no memory in use."""
    idle = pool()
    for number in range(100):
        connection = connection_to(Origin("http", f"{number}.test", 80))
        idle.put(connection, 0.0)
        assert idle.take(connection.origin) is connection
        assert idle.origin_count == 1
        idle.discard(connection)
        assert idle.origin_count == 0
