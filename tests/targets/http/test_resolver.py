"""The resolver: shared, cached, bounded lookups, and the attribution of failures."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import Sequence

import pytest

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.resolver import Resolver, ResolverCheck, SystemLookup
from tests.targets.http.conftest import SHORT_S, MakePost
from tests.waiting import until

TRY_AGAIN = socket.gaierror(socket.EAI_AGAIN, "try again")
NO_RECOVERY = socket.gaierror(socket.EAI_FAIL, "non-recoverable failure")
NO_SUCH_NAME = socket.gaierror(socket.EAI_NONAME, "no such name")
NO_ADDRESS = socket.gaierror(socket.EAI_NODATA, "no address")


class Names:
    """A lookup in a table that counts its calls and waits for `may_answer`.

    `above` is the answer for names that are not in the table, such as random labels.
    """

    def __init__(self, **table: Sequence[str] | Exception) -> None:
        self.table = {name.replace("_", "."): found for name, found in table.items()}
        self.above: Sequence[str] | Exception = TRY_AGAIN
        self.checked: list[str] = []
        self.asked: Counter[str] = Counter()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, host: str) -> Sequence[str]:
        if host.endswith("."):
            self.checked.append(host)
            found = self.above
        else:
            self.asked[host] += 1
            await self.may_answer.wait()
            found = self.table[host]
        if isinstance(found, Exception):
            raise found
        return found


async def failure_of(resolver: Resolver, host: str) -> AttemptFailure:
    """Return the failure that resolving a name raises."""
    with pytest.raises(AttemptFailure) as caught:
        await resolver.resolve(host)
    return caught.value


async def test_all_addresses_are_returned_once_in_order() -> None:
    names = Names(a_test=["192.0.2.2", "2001:db8::1", "192.0.2.2", "192.0.2.1"])
    assert await Resolver(names).resolve("a.test") == ("192.0.2.2", "2001:db8::1", "192.0.2.1")


async def test_concurrent_callers_share_one_lookup() -> None:
    names = Names(a_test=["192.0.2.1"], b_test=["192.0.2.2"])
    names.may_answer.clear()
    resolver = Resolver(names)
    asking = [asyncio.create_task(resolver.resolve("a.test")) for _ in range(50)]
    asking.append(asyncio.create_task(resolver.resolve("b.test")))
    await until(lambda: names.asked.total() == 2, "both names are asked for")
    names.may_answer.set()
    assert set(await asyncio.gather(*asking)) == {("192.0.2.1",), ("192.0.2.2",)}
    assert names.asked == {"a.test": 1, "b.test": 1}


async def test_cancelled_caller_does_not_stop_the_lookup() -> None:
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
async def test_addresses_are_cached_for_the_ttl(ttl_s: float, lookups: int) -> None:
    names = Names(a_test=["192.0.2.1"])
    resolver = Resolver(names, ttl_s=ttl_s)
    for _ in range(3):
        await resolver.resolve("a.test")
    assert names.asked["a.test"] == lookups


@pytest.mark.parametrize("ttl_s, lookups", [(60.0, 1), (0.0, 3)], ids=["within", "beyond"])
async def test_failure_is_cached_for_its_ttl(ttl_s: float, lookups: int) -> None:
    names = Names(a_test=NO_SUCH_NAME)
    resolver = Resolver(names, failure_ttl_s=ttl_s)
    for _ in range(3):
        await failure_of(resolver, "a.test")
    assert names.asked["a.test"] == lookups


async def test_cache_is_bounded_and_evicts_the_oldest() -> None:
    names = Names(a_test=["192.0.2.1"], b_test=["192.0.2.1"], c_test=["192.0.2.1"])
    resolver = Resolver(names, names_max=2)
    for host in ("a.test", "b.test", "c.test", "b.test", "c.test", "a.test"):
        await resolver.resolve(host)
    assert names.asked == {"a.test": 2, "b.test": 1, "c.test": 1}


async def test_number_of_waiting_lookups_is_bounded() -> None:
    names = Names(a_test=["192.0.2.1"], b_test=["192.0.2.2"])
    names.may_answer.clear()
    resolver = Resolver(names, lookups_max=1, waiting_max=1)
    asking = [asyncio.create_task(resolver.resolve("a.test"))]
    await until(lambda: names.asked.total() == 1, "the lookup runs")
    asking.append(asyncio.create_task(resolver.resolve("b.test")))
    await asyncio.sleep(0)  # it waits
    failure = await failure_of(resolver, "c.test")
    assert failure.kind is AttemptOutcome.INTERNAL_ERROR
    names.may_answer.set()
    assert await asyncio.gather(*asking) == [("192.0.2.1",), ("192.0.2.2",)]


async def test_slow_names_of_one_tenant_delay_no_other() -> None:
    """A tenant controls its name servers, and so the duration of their answers."""
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
        (socket.gaierror(socket.EAI_FAIL, "x"), AttemptOutcome.INTERNAL_ERROR),
        ([], AttemptOutcome.CONNECTION_FAILED),
        (UnicodeError("label too long"), AttemptOutcome.CONNECTION_FAILED),
        (TRY_AGAIN, AttemptOutcome.INTERNAL_ERROR),
        (socket.gaierror(socket.EAI_MEMORY, "x"), AttemptOutcome.INTERNAL_ERROR),
        (socket.gaierror(socket.EAI_SYSTEM, "x"), AttemptOutcome.INTERNAL_ERROR),
        (OSError(24, "too many open files"), AttemptOutcome.INTERNAL_ERROR),
    ],
    ids=str,
)
async def test_attribution_of_a_failed_lookup(
    found: Sequence[str] | Exception, kind: AttemptOutcome
) -> None:
    failure = await failure_of(Resolver(Names(a_test=found)), "a.test")
    assert failure.kind is kind
    assert not failure.was_sent


@pytest.mark.parametrize("error", [TRY_AGAIN, NO_RECOVERY], ids=["try again", "fail"])
@pytest.mark.parametrize(
    "above", [NO_SUCH_NAME, NO_ADDRESS, ["192.0.2.1"]], ids=["no such name", "no data", "wildcard"]
)
async def test_dead_name_servers_count_against_the_target_while_the_resolver_works(
    error: Exception, above: Sequence[str] | Exception
) -> None:
    names = Names(dead_test=error)
    names.above = above
    failure = await failure_of(Resolver(names), "dead.test")
    assert failure.kind is AttemptOutcome.CONNECTION_FAILED
    assert names.asked["dead.test"] == 2, "before the check and after it"


async def test_resolver_is_checked_by_names_that_cannot_be_cached() -> None:
    names = Names(**{"a.dead_test": TRY_AGAIN})
    names.above = NO_SUCH_NAME
    resolver = Resolver(names, failure_ttl_s=0.0)
    for _ in range(3):
        await failure_of(resolver, "a.dead.test")
    assert len(set(names.checked)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{16}\.test\.", name) for name in names.checked)


@pytest.mark.parametrize("witness", ["localhost", "good.test", "good.example"])
async def test_lookup_of_a_tenants_name_is_no_evidence_that_the_resolver_works(
    witness: str,
) -> None:
    """The name may be in the hosts file, in the resolver's cache, or on a local server."""
    names = Names(dead_test=TRY_AGAIN)
    names.table[witness] = ["192.0.2.1"]
    resolver = Resolver(names, ttl_s=0.0)
    await resolver.resolve(witness, "hostile")
    failure = await failure_of(resolver, "dead.test")
    assert failure.kind is AttemptOutcome.INTERNAL_ERROR
    await resolver.resolve(witness, "hostile")


async def test_name_that_resolves_after_an_outage_is_no_failure() -> None:
    """The outage ended before the check, so that the check proves nothing about the name."""
    names = Names(back_test=TRY_AGAIN)

    async def lookup(host: str) -> Sequence[str]:
        if host.endswith("."):
            names.table["back.test"] = ["192.0.2.1"]
            raise NO_SUCH_NAME
        return await names(host)

    assert await Resolver(lookup).resolve("back.test") == ("192.0.2.1",)


async def test_failure_soon_after_an_outage_counts_against_the_resolver() -> None:
    """Resolvers cache failures, and avoid unreachable servers for a while."""
    names = Names(dead_test=TRY_AGAIN, dead_example=TRY_AGAIN)
    check = ResolverCheck(names, outage_tail_s=60.0)
    resolver = Resolver(names, check=check, failure_ttl_s=0.0)
    assert (await failure_of(resolver, "dead.test")).kind is AttemptOutcome.INTERNAL_ERROR
    names.above = NO_SUCH_NAME
    assert (await failure_of(resolver, "dead.test")).kind is AttemptOutcome.INTERNAL_ERROR
    elsewhere = await failure_of(resolver, "dead.example")
    assert elsewhere.kind is AttemptOutcome.CONNECTION_FAILED, "another top-level domain's servers"


async def test_failure_long_after_an_outage_counts_against_the_target() -> None:
    names = Names(dead_test=TRY_AGAIN)
    resolver = Resolver(names, check=ResolverCheck(names, outage_tail_s=0.0), failure_ttl_s=0.0)
    assert (await failure_of(resolver, "dead.test")).kind is AttemptOutcome.INTERNAL_ERROR
    names.above = NO_SUCH_NAME
    assert (await failure_of(resolver, "dead.test")).kind is AttemptOutcome.CONNECTION_FAILED


async def test_failed_lookup_of_a_single_label_is_an_internal_error() -> None:
    names = Names(intranet=TRY_AGAIN)
    names.above = NO_SUCH_NAME
    assert (await failure_of(Resolver(names), "intranet")).kind is AttemptOutcome.INTERNAL_ERROR
    assert names.checked == []


async def test_lookup_beyond_the_deadline_is_an_internal_error_and_continues(
    make_post: MakePost,
) -> None:
    names = Names(slow_test=NO_SUCH_NAME)
    names.may_answer.clear()
    post = make_post(resolver=Resolver(names))
    outcome = await post("http://slow.test/", timeout_s=SHORT_S)
    assert outcome.kind is AttemptOutcome.INTERNAL_ERROR
    assert outcome.error == "the host's name did not resolve before the deadline"
    names.may_answer.set()
    outcome = await post("http://slow.test/")
    assert outcome.kind is AttemptOutcome.CONNECTION_FAILED
    assert names.asked["slow.test"] == 1


async def test_closing_ends_waiting_attempts(make_post: MakePost) -> None:
    names = Names(slow_test=["192.0.2.1"])
    names.may_answer.clear()
    post = make_post(resolver=Resolver(names))
    attempt = asyncio.create_task(post("http://slow.test/"))
    await until(lambda: names.asked.total() == 1, "the lookup runs")
    await post.transport.aclose()
    outcome = await attempt
    assert outcome.kind is AttemptOutcome.INTERNAL_ERROR
    assert outcome.error == "the service is stopping"


async def test_lookup_that_ended_before_the_stop_is_returned() -> None:
    resolver = Resolver(Names(a_test=["192.0.2.1"]))
    asking = asyncio.create_task(resolver.resolve("a.test"))
    for _ in range(2):  # the lookup has ended, its caller has not been woken yet
        await asyncio.sleep(0)
    await resolver.aclose()
    assert await asking == ("192.0.2.1",)


async def test_system_lookup_resolves_localhost() -> None:
    lookup = SystemLookup()
    try:
        assert "127.0.0.1" in await lookup("localhost")
        # What resolvers read as an address is an address, and meets the same egress check.
        assert await lookup("2130706433") == ["127.0.0.1"]
    finally:
        lookup.close()
