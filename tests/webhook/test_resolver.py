"""Names to addresses: shared, cached, bounded; and whose fault it is when there are none."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence

import pytest

from service.domain.attempt import AttemptOutcome
from service.webhook.failure import AttemptFailure
from service.webhook.resolver import Resolver, SystemLookup
from tests.waiting import until
from tests.webhook.conftest import SHORT_S, MakePost

TRY_AGAIN = socket.gaierror(socket.EAI_AGAIN, "try again")
NO_SUCH_NAME = socket.gaierror(socket.EAI_NONAME, "no such name")


class Names:
    """A lookup by table, which counts, and waits where it is told to."""

    def __init__(self, **table: Sequence[str] | Exception) -> None:
        self.table = {name.replace("_", "."): found for name, found in table.items()}
        self.asked: Counter[str] = Counter()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked[host] += 1
        await self.may_answer.wait()
        found = self.table[host]
        if isinstance(found, Exception):
            raise found
        return found


async def failure_of(resolver: Resolver, host: str) -> AttemptFailure:
    """The failure that resolving a name ends in."""
    with pytest.raises(AttemptFailure) as caught:
        await resolver.resolve(host)
    return caught.value


async def test_all_addresses_come_in_order_and_once() -> None:
    names = Names(a_test=["192.0.2.2", "2001:db8::1", "192.0.2.2", "192.0.2.1"])
    assert await Resolver(names).resolve("a.test") == ("192.0.2.2", "2001:db8::1", "192.0.2.1")


async def test_concurrent_askers_share_one_lookup() -> None:
    names = Names(a_test=["192.0.2.1"], b_test=["192.0.2.2"])
    names.may_answer.clear()
    resolver = Resolver(names)
    asking = [asyncio.create_task(resolver.resolve("a.test")) for _ in range(50)]
    asking.append(asyncio.create_task(resolver.resolve("b.test")))
    await until(lambda: names.asked.total() == 2, "both names are asked for")
    names.may_answer.set()
    assert set(await asyncio.gather(*asking)) == {("192.0.2.1",), ("192.0.2.2",)}
    assert names.asked == {"a.test": 1, "b.test": 1}


async def test_an_asker_that_gives_up_does_not_stop_the_others() -> None:
    names = Names(a_test=["192.0.2.1"])
    names.may_answer.clear()
    resolver = Resolver(names)
    first, second = (asyncio.create_task(resolver.resolve("a.test")) for _ in range(2))
    await until(lambda: names.asked.total() == 1, "the lookup runs")
    first.cancel()
    names.may_answer.set()
    assert await second == ("192.0.2.1",)
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("ttl_s, lookups", [(60.0, 1), (0.0, 3)], ids=["within", "beyond"])
async def test_an_answer_holds_for_its_time(ttl_s: float, lookups: int) -> None:
    names = Names(a_test=["192.0.2.1"])
    resolver = Resolver(names, ttl_s=ttl_s)
    for _ in range(3):
        await resolver.resolve("a.test")
    assert names.asked["a.test"] == lookups


@pytest.mark.parametrize("ttl_s, lookups", [(60.0, 1), (0.0, 3)], ids=["within", "beyond"])
async def test_so_does_a_failure(ttl_s: float, lookups: int) -> None:
    names = Names(a_test=NO_SUCH_NAME)
    resolver = Resolver(names, failure_ttl_s=ttl_s)
    for _ in range(3):
        await failure_of(resolver, "a.test")
    assert names.asked["a.test"] == lookups


async def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    names = Names(a_test=["192.0.2.1"], b_test=["192.0.2.1"], c_test=["192.0.2.1"])
    resolver = Resolver(names, names_max=2)
    for host in ("a.test", "b.test", "c.test", "b.test", "c.test", "a.test"):
        await resolver.resolve(host)
    assert names.asked == {"a.test": 2, "b.test": 1, "c.test": 1}


async def test_waiting_lookups_are_bounded() -> None:
    names = Names(a_test=["192.0.2.1"], b_test=["192.0.2.2"])
    names.may_answer.clear()
    resolver = Resolver(names, lookups_max=1, waiting_max=1)
    asking = [asyncio.create_task(resolver.resolve("a.test"))]
    await until(lambda: names.asked.total() == 1, "the lookup runs")
    asking.append(asyncio.create_task(resolver.resolve("b.test")))
    await asyncio.sleep(0)  # it waits
    failure = await failure_of(resolver, "c.test")
    assert failure.kind is AttemptOutcome.OWN_FAULT
    names.may_answer.set()
    assert await asyncio.gather(*asking) == [("192.0.2.1",), ("192.0.2.2",)]


async def test_a_tenant_whose_names_are_slow_keeps_no_other_waiting() -> None:
    """Name servers are whoever's the tenant likes, and answer when they like."""
    names = Names(good_test=["192.0.2.1"])
    never = asyncio.Event()

    async def lookup(host: str) -> Sequence[str]:
        if host != "good.test":
            await never.wait()
        return await names(host)

    resolver = Resolver(lookup, lookups_max=16, waiting_max=64)
    slow = [f"slow-{number}.test" for number in range(100)]
    asking = [asyncio.create_task(resolver.resolve(host, "hostile")) for host in slow]
    asking.append(asyncio.create_task(resolver.resolve("good.test", "hostile")))
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        assert await resolver.resolve("good.test", "acme") == ("192.0.2.1",)
        assert await resolver.resolve("good.test") == ("192.0.2.1",)
    assert sum(task.done() for task in asking) >= 100 - 64 - 16, "its own are refused beyond"
    await resolver.aclose()
    await asyncio.gather(*asking, return_exceptions=True)


@pytest.mark.parametrize(
    "found, kind",
    [
        (NO_SUCH_NAME, AttemptOutcome.CONNECTION_FAILED),
        (socket.gaierror(socket.EAI_FAIL, "x"), AttemptOutcome.CONNECTION_FAILED),
        ([], AttemptOutcome.CONNECTION_FAILED),
        (UnicodeError("label too long"), AttemptOutcome.CONNECTION_FAILED),
        (TRY_AGAIN, AttemptOutcome.OWN_FAULT),
        (socket.gaierror(socket.EAI_MEMORY, "x"), AttemptOutcome.OWN_FAULT),
        (socket.gaierror(socket.EAI_SYSTEM, "x"), AttemptOutcome.OWN_FAULT),
        (OSError(24, "too many open files"), AttemptOutcome.OWN_FAULT),
    ],
    ids=str,
)
async def test_whose_fault_a_failed_lookup_is(
    found: Sequence[str] | Exception, kind: AttemptOutcome
) -> None:
    failure = await failure_of(Resolver(Names(a_test=found)), "a.test")
    assert failure.kind is kind
    assert not failure.was_sent


async def test_dead_name_servers_are_the_target_s_while_others_resolve() -> None:
    names = Names(good_test=["192.0.2.1"], dead_test=TRY_AGAIN)
    resolver = Resolver(names)
    await resolver.resolve("good.test")
    failure = await failure_of(resolver, "dead.test")
    assert failure.kind is AttemptOutcome.CONNECTION_FAILED
    assert names.asked["good.test"] == 2, "the witness is looked up anew"


async def test_a_dead_resolver_is_our_own_fault_whatever_resolved_before() -> None:
    names = Names(good_test=["192.0.2.1"], dead_test=TRY_AGAIN)
    resolver = Resolver(names)
    await resolver.resolve("good.test")
    names.table["good.test"] = TRY_AGAIN
    failure = await failure_of(resolver, "dead.test")
    assert failure.kind is AttemptOutcome.OWN_FAULT


async def test_a_name_is_no_witness_for_itself() -> None:
    names = Names(flaky_test=["192.0.2.1"])
    resolver = Resolver(names, ttl_s=0.0, failure_ttl_s=0.0)
    await resolver.resolve("flaky.test")
    names.table["flaky.test"] = TRY_AGAIN
    assert (await failure_of(resolver, "flaky.test")).kind is AttemptOutcome.OWN_FAULT
    names.table |= {"good.test": ["192.0.2.1"], "flaky.test": ["192.0.2.2"]}
    for host in ("good.test", "flaky.test"):
        await resolver.resolve(host)
    names.table["flaky.test"] = TRY_AGAIN
    assert (await failure_of(resolver, "flaky.test")).kind is AttemptOutcome.CONNECTION_FAILED


async def test_a_lookup_that_outlives_the_deadline_is_our_own_fault_and_goes_on(
    make_post: MakePost,
) -> None:
    names = Names(slow_test=NO_SUCH_NAME)
    names.may_answer.clear()
    post = make_post(resolver=Resolver(names))
    outcome = await post("http://slow.test/", timeout_s=SHORT_S)
    assert outcome.kind is AttemptOutcome.OWN_FAULT
    assert outcome.error == "the host's name did not resolve before the deadline"
    names.may_answer.set()
    outcome = await post("http://slow.test/")
    assert outcome.kind is AttemptOutcome.CONNECTION_FAILED
    assert names.asked["slow.test"] == 1


async def test_closing_frees_those_who_wait(make_post: MakePost) -> None:
    names = Names(slow_test=["192.0.2.1"])
    names.may_answer.clear()
    post = make_post(resolver=Resolver(names))
    attempt = asyncio.create_task(post("http://slow.test/"))
    await until(lambda: names.asked.total() == 1, "the lookup runs")
    await post.transport.aclose()
    outcome = await attempt
    assert outcome.kind is AttemptOutcome.OWN_FAULT
    assert outcome.error == "the service is stopping"


async def test_a_lookup_that_ends_as_the_service_stops_is_an_answer() -> None:
    resolver = Resolver(Names(a_test=["192.0.2.1"]))
    asking = asyncio.create_task(resolver.resolve("a.test"))
    for _ in range(2):  # it is asked for, and looked up; who asks is not told yet
        await asyncio.sleep(0)
    await resolver.aclose()
    assert await asking == ("192.0.2.1",)


async def test_the_system_knows_localhost() -> None:
    lookup = SystemLookup()
    try:
        assert "127.0.0.1" in await lookup("localhost")
        # What resolvers read as an address is an address, and meets the same egress check.
        assert await lookup("2130706433") == ["127.0.0.1"]
    finally:
        lookup.close()
