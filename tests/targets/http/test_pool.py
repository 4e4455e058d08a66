"""The idle pool decides which connection is taken, kept and closed; it touches none of them."""

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
    """A connection that nothing was done with."""
    return Connection(origin, "127.0.0.1", OWNER, AnswerReader(), asyncio.get_running_loop())


def pool(per_origin_max: int = 10, total_max: int = 10) -> IdlePool:
    return IdlePool(per_origin_max=per_origin_max, total_max=total_max, idle_timeout_s=30.0)


async def test_the_warmest_is_taken_first_and_only_by_its_origin() -> None:
    idle = pool()
    cold, warm, other = connection_to(HERE), connection_to(HERE), connection_to(THERE)
    for now, connection in enumerate((cold, warm, other)):
        assert idle.put(connection, float(now)) is None
    assert [idle.take(HERE), idle.take(HERE), idle.take(HERE)] == [warm, cold, None]
    assert idle.take(THERE) is other
    assert len(idle) == 0


async def test_the_origin_of_another_scheme_or_port_is_another() -> None:
    idle = pool()
    idle.put(connection_to(HERE), 0.0)
    for origin in (HERE._replace(scheme="http"), HERE._replace(port=8443)):
        assert idle.take(origin) is None


async def test_a_full_origin_keeps_what_it_has() -> None:
    idle = pool(per_origin_max=1)
    first, second = connection_to(HERE), connection_to(HERE)
    assert idle.put(first, 0.0) is None
    assert idle.put(second, 1.0) is second
    assert idle.put(connection_to(THERE), 1.0) is None
    assert idle.take(HERE) is first


async def test_a_full_pool_gives_up_the_oldest_of_all() -> None:
    idle = pool(total_max=2)
    oldest, old, new = connection_to(HERE), connection_to(THERE), connection_to(HERE)
    idle.put(oldest, 0.0)
    idle.put(old, 1.0)
    assert idle.put(new, 2.0) is oldest
    idle.discard(oldest)
    assert len(idle) == 2
    assert idle.oldest() is old


async def test_use_makes_young() -> None:
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


async def test_origins_without_connections_are_forgotten() -> None:
    """A hundred thousand targets, each sent to once, must leave nothing behind."""
    idle = pool()
    for number in range(100):
        connection = connection_to(Origin("http", f"{number}.test", 80))
        idle.put(connection, 0.0)
        assert idle.take(connection.origin) is connection
        assert idle.origin_count == 1
        idle.discard(connection)
        assert idle.origin_count == 0
