"""The dialer: checks of addresses before a connection, order of the addresses tried, and TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.connection import Connection, Origin
from hookline_service.targets.http.dialer import Dialer, DirectRoute
from hookline_service.targets.http.egress import EgressPolicy, parse_networks, parse_ports
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.resolver import Resolver
from hookline_service.targets.http.tls import (
    ClientIdentity,
    TargetTlsContext,
    TlsContexts,
    make_tls_context,
)
from tests.targets.http.conftest import LOOPBACK, SHORT_S, MakePost
from tests.targets.http.receiver import OK, Connected, Receiver, answering
from tests.waiting import until

UNSPECIFIED = "0.0.0.0"  # noqa: S104 - connected to, not bound
BLOCKED = AttemptOutcome.ADDRESS_BLOCKED


class TestEgress:
    """No packet is sent to an address that is neither public nor allowed."""

    @pytest.mark.parametrize(
        "addresses",
        [
            ["127.0.0.1"],
            ["10.0.0.1"],
            ["169.254.169.254"],
            [UNSPECIFIED],
            ["::1"],
            ["::"],
            ["::ffff:127.0.0.1"],
            ["::127.0.0.1"],
            ["64:ff9b::7f00:1"],
            ["2002:7f00:1::"],
            ["fe80::1%lo"],
            ["fd00::1"],
            ["8.8.8.8", "10.0.0.1"],
            ["10.0.0.1", "8.8.8.8"],
            ["127.0.0.2", "127.0.0.1"],
            ["not an address"],
            [""],
        ],
        ids=",".join,
    )
    async def test_name_with_a_private_address_is_blocked(
        self, make_post: MakePost, addresses: list[str]
    ) -> None:
        allowed = EgressPolicy(parse_networks(["127.0.0.2/32"]))
        post = make_post(egress=allowed, names={"evil.test": addresses})
        async with Receiver(answering(OK)) as receiver:
            outcome = await post(receiver.url(host="evil.test"))
            assert outcome.kind is BLOCKED
            # Connections are accepted in order: had there been one, it would be counted first.
            _, writer = await asyncio.open_connection(receiver.host, receiver.port)
            await until(lambda: receiver.connection_count > 0, "ours is accepted")
            assert receiver.connection_count == 1
            writer.close()

    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "[::1]", "[::ffff:7f00:1]", "[::ffff:127.0.0.1]"]
    )
    async def test_literal_address_is_checked_when_sent_to(
        self, make_post: MakePost, host: str
    ) -> None:
        async with Receiver(answering(OK)) as receiver:
            outcome = await make_post(egress=EgressPolicy())(receiver.url(host=host))
            assert outcome.kind is BLOCKED
            assert receiver.connection_count == 0

    async def test_port_that_is_denied_after_creation_is_not_connected_to(
        self, make_post: MakePost
    ) -> None:
        async with Receiver(answering(OK)) as receiver:
            denied = parse_ports([str(receiver.port)])
            post = make_post(egress=replace(LOOPBACK, deny_ports=denied))
            outcome = await post(receiver.url())
            assert outcome.kind is BLOCKED
            assert outcome.error == "the port is not one that this service may send to"
            assert receiver.connection_count == 0

    async def test_error_of_a_blocked_name_contains_no_address(self, make_post: MakePost) -> None:
        """Otherwise a tenant could read the deployment's internal DNS, one name at a time."""
        post = make_post(names={"db.internal": ["10.1.2.3"]})
        outcome = await post("http://db.internal/")
        assert outcome.kind is BLOCKED
        assert "10.1.2.3" not in outcome.error
        assert outcome.remote_address is None

    async def test_address_in_an_allowed_network_is_reached(self, make_post: MakePost) -> None:
        post = make_post(
            egress=EgressPolicy(parse_networks(["127.0.0.1/32"])),
            names={"inside.test": ["127.0.0.1"], "beside.test": ["127.0.0.2"]},
        )
        async with Receiver(answering(OK)) as receiver:
            inside = await post(receiver.url(host="inside.test"))
            beside = await post(receiver.url(host="beside.test"))
        assert inside.kind is AttemptOutcome.ACCEPTED
        assert beside.kind is BLOCKED

    async def test_peer_address_of_the_socket_is_checked(self, make_post: MakePost) -> None:
        """0.0.0.0 is one address when it is checked, and another once it is connected."""
        post = make_post(
            egress=EgressPolicy(parse_networks(["0.0.0.0/32"])), names={"zero.test": [UNSPECIFIED]}
        )
        async with Receiver(answering(OK)) as receiver:
            outcome = await post(receiver.url(host="zero.test"))
            assert outcome.kind is BLOCKED
            await until(lambda: receiver.connection_count == 1, "it was connected")
            assert receiver.requests == []

    async def test_rebound_name_reaches_no_private_address(self, make_post: MakePost) -> None:
        """The name resolves to an allowed address first: each new connection is checked again."""
        answers = iter([["127.0.0.1"], ["10.0.0.1"]])

        async def lookup(_: str) -> Sequence[str]:
            return next(answers)

        async def script(connected: Connected) -> None:
            await connected.read_request()
            await connected.write(OK)

        post = make_post(resolver=Resolver(lookup, ttl_s=0.0))
        async with Receiver(script) as receiver:
            first = await post(receiver.url(host="rebound.test"))
            await until(lambda: post.transport.connection_count == 0, "it is closed")
            second = await post(receiver.url(host="rebound.test"))
        assert [first.kind, second.kind] == [AttemptOutcome.ACCEPTED, BLOCKED]


class TestAddresses:
    """All addresses of a name are tried in order, within one deadline."""

    async def test_next_address_is_tried_after_a_refused_connection(
        self, make_post: MakePost
    ) -> None:
        post = make_post(names={"several.test": ["127.0.0.3", "127.0.0.2", "127.0.0.1"]})
        async with Receiver(answering(OK), host="127.0.0.1") as receiver:
            outcome = await post(receiver.url(host="several.test"))
        assert outcome.kind is AttemptOutcome.ACCEPTED
        assert outcome.remote_address == "127.0.0.1"

    async def test_next_address_is_tried_after_a_silent_one(
        self, make_post: MakePost, silent_port: int
    ) -> None:
        post = make_post(names={"several.test": ["127.0.0.1", "127.0.0.2"]})
        async with Receiver(answering(OK), host="127.0.0.2", port=silent_port) as receiver:
            outcome = await post(receiver.url(host="several.test"), timeout_s=2.0)
        assert outcome.kind is AttemptOutcome.ACCEPTED
        assert outcome.remote_address == "127.0.0.2"

    async def test_host_without_ipv6_connects_to_the_ipv4_address(
        self, make_post: MakePost
    ) -> None:
        post = make_post(
            egress=EgressPolicy(parse_networks(["127.0.0.0/8", "2001:db8::/32"])),
            names={"both.test": ["2001:db8::1", "127.0.0.1"], "six.test": ["2001:db8::1"]},
        )
        async with Receiver(answering(OK)) as receiver:
            both = await post(receiver.url(host="both.test"), timeout_s=3.0)
            six = await post(receiver.url(host="six.test"), timeout_s=SHORT_S)
        assert both.kind is AttemptOutcome.ACCEPTED
        assert six.kind in {AttemptOutcome.CONNECTION_FAILED, AttemptOutcome.TIMEOUT}

    async def test_number_of_tried_addresses_is_bounded(self, make_post: MakePost) -> None:
        """A name with a thousand addresses does not cause a thousand connects."""
        addresses = [f"127.0.1.{last}" for last in range(1, 100)]
        names = {"many.test": [*addresses, "127.0.0.1"]}
        async with Receiver(answering(OK)) as receiver:
            url = receiver.url(host="many.test")
            few = await make_post(names=names)(url)
            all_of_them = await make_post(names=names, addresses_max=100)(url)
        assert few.kind is AttemptOutcome.CONNECTION_FAILED
        assert few.remote_address == "127.0.1.1"
        assert all_of_them.kind is AttemptOutcome.ACCEPTED

    async def test_failure_of_all_addresses_counts_against_the_target(
        self, make_post: MakePost, closed_port: int
    ) -> None:
        post = make_post(names={"dead.test": ["127.0.0.1", "127.0.0.2"]})
        outcome = await post(f"http://dead.test:{closed_port}/")
        assert outcome.kind is AttemptOutcome.CONNECTION_FAILED
        assert outcome.error == "the connection was refused"


async def test_cancelled_dial_closes_its_descriptor(make_post: MakePost, silent_port: int) -> None:
    post = make_post()
    attempts = [asyncio.create_task(post(f"http://127.0.0.1:{silent_port}/")) for _ in range(20)]
    await until(lambda: post.transport.connection_count == 20, "all are dialling")
    for attempt in attempts:
        attempt.cancel()
    await asyncio.gather(*attempts, return_exceptions=True)
    assert post.transport.connection_count == 0


async def test_slow_tls_context_is_an_internal_error_at_the_deadline() -> None:
    """Each client certificate needs a TLS context: many at once must not delay other attempts."""

    class Slow(TlsContexts):
        async def of(self, identity: ClientIdentity | None) -> TargetTlsContext:
            await asyncio.Event().wait()
            return await super().of(identity)

    dialer = Dialer(
        resolver=Resolver(),
        egress=LOOPBACK,
        route=DirectRoute(LOOPBACK),
        tls=Slow(make_tls_context),
    )
    deadline = asyncio.get_running_loop().time() + SHORT_S
    with pytest.raises(AttemptFailure) as caught:
        await dialer.dial(Origin("https", "127.0.0.1", 443), deadline, unmade)
    assert caught.value.kind is AttemptOutcome.INTERNAL_ERROR


def unmade(origin: Origin, _address: str | None) -> Connection:
    raise AssertionError(f"a connection to {origin.host}")
