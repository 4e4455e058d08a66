"""The egress proxy: the only route out, and its failures count against no target."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest
import trustme
from structlog.testing import capture_logs

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.egress import EgressPolicy, parse_hosts, parse_networks
from hookline_service.targets.http.proxy import HEAD_BYTES_MAX, EgressProxy, parse_proxy
from tests.targets.http.conftest import MakePost, Post, server_tls
from tests.targets.http.proxy import OPEN, Proxy
from tests.targets.http.receiver import OK, Connected, Receiver, answering

ACCEPTED = AttemptOutcome.ACCEPTED
BLOCKED = AttemptOutcome.ADDRESS_BLOCKED
INTERNAL_ERROR = AttemptOutcome.INTERNAL_ERROR
NAMES = {"good.test": ["127.0.0.1"], "other.test": ["127.0.0.2"], "dead.test": ["127.0.0.9"]}


def through(
    make_post: MakePost, proxy: Proxy, *, resolves: bool = False, **options: object
) -> Post:
    """Return attempts through a proxy; names resolve as in `NAMES`."""
    address = EgressProxy("127.0.0.1", proxy.port, resolves=resolves)
    return make_post(**{"proxy": address, "names": NAMES, **options})


class TestTunnels:
    async def test_a_plain_request_goes_through_a_tunnel_to_the_checked_address(
        self, make_post: MakePost
    ) -> None:
        async with Proxy() as proxy, Receiver(answering(OK)) as receiver:
            post = through(make_post, proxy)
            outcomes = [await post(receiver.url("/path", host="good.test")) for _ in range(3)]
            assert [outcome.kind for outcome in outcomes] == [ACCEPTED] * 3
            assert outcomes[0].remote_address == "127.0.0.1"
            assert proxy.asked == [f"127.0.0.1:{receiver.port}"]
            assert "proxy-authorization" not in proxy.heads[0]
            assert {request.request_line for request in receiver.requests} == {
                b"POST /path HTTP/1.1"
            }
            assert receiver.requests[0].headers["host"] == f"good.test:{receiver.port}"

    async def test_tls_inside_the_tunnel_is_verified_against_the_target_s_name(
        self, make_post: MakePost, authority: trustme.CA, trusting: ssl.SSLContext
    ) -> None:
        tls = server_tls(authority.issue_cert("good.test"))
        async with Proxy() as proxy, Receiver(answering(OK), tls=tls) as receiver:
            post = through(make_post, proxy, tls_context=trusting)
            assert (await post(receiver.url(host="good.test"))).kind is ACCEPTED
            outcome = await post(receiver.url(host="127.0.0.1"))
            assert outcome.kind is AttemptOutcome.TLS_FAILED

    async def test_credentials_of_the_proxy_are_sent_to_the_proxy_only(
        self, make_post: MakePost
    ) -> None:
        async with Proxy() as proxy, Receiver(answering(OK)) as receiver:
            address = parse_proxy(f"http://out:s%40crt@127.0.0.1:{proxy.port}")
            post = make_post(proxy=address, names=NAMES)
            with capture_logs() as logs:
                outcome = await post(receiver.url(host="good.test"))
                proxy.answers["*"] = b"HTTP/1.1 407 No\r\n\r\n"
                refused = await post(receiver.url(host="other.test"))
            assert proxy.heads[0]["proxy-authorization"] == "Basic b3V0OnNAY3J0"
            assert "proxy-authorization" not in receiver.requests[0].headers
            shown = repr((outcome, refused, logs, address))
            assert "s@crt" not in shown
            assert "b3V0OnNAY3J0" not in shown

    async def test_next_address_is_tried_after_the_proxy_cannot_reach_one(
        self, make_post: MakePost
    ) -> None:
        names = NAMES | {"several.test": ["127.0.0.9", "127.0.0.2"]}
        async with Proxy() as proxy, Receiver(answering(OK), host="127.0.0.2") as receiver:
            proxy.answers[f"127.0.0.9:{receiver.port}"] = b"HTTP/1.1 502 No\r\n\r\n"
            post = through(make_post, proxy, names=names)
            assert (await post(receiver.url(host="other.test"))).kind is ACCEPTED
            outcome = await post(receiver.url(host="several.test"))
        assert (outcome.kind, outcome.remote_address) == (ACCEPTED, "127.0.0.2")


class TestGuard:
    @pytest.mark.parametrize("resolves", [False, True])
    @pytest.mark.parametrize("host", ["10.0.0.1", "[::1]", "169.254.169.254"])
    async def test_literal_address_is_checked_even_if_the_proxy_resolves_names(
        self, make_post: MakePost, host: str, *, resolves: bool
    ) -> None:
        async with Proxy() as proxy:
            post = through(make_post, proxy, resolves=resolves, egress=EgressPolicy())
            assert (await post(f"http://{host}/")).kind is BLOCKED
            assert proxy.connection_count == 0

    async def test_no_tunnel_is_requested_for_a_name_with_private_addresses(
        self, make_post: MakePost
    ) -> None:
        names = {"evil.test": ["127.0.0.1", "10.0.0.1"]}
        async with Proxy() as proxy:
            outcome = await through(make_post, proxy, names=names)("http://evil.test/")
            assert outcome.kind is BLOCKED
            assert proxy.connection_count == 0

    async def test_proxy_that_resolves_names_receives_the_name(
        self, make_post: MakePost, authority: trustme.CA, trusting: ssl.SSLContext
    ) -> None:
        tls = server_tls(authority.issue_cert("only.proxy.test"))
        async with Receiver(answering(OK), tls=tls) as receiver:
            place = f"only.proxy.test:{receiver.port}"
            async with Proxy(leads_to={place: ("127.0.0.1", receiver.port)}) as proxy:
                post = through(make_post, proxy, resolves=True, tls_context=trusting)
                outcome = await post(receiver.url(host="only.proxy.test"))
                assert (outcome.kind, outcome.remote_address) == (ACCEPTED, None)
                assert proxy.asked == [place]

    @pytest.mark.parametrize("resolves", [False, True])
    async def test_host_lists_are_checked_before_the_proxy_is_connected_to(
        self, make_post: MakePost, *, resolves: bool
    ) -> None:
        policy = EgressPolicy(parse_networks(["127.0.0.0/8"]), deny_hosts=parse_hosts(["*.test"]))
        async with Proxy() as proxy:
            post = through(make_post, proxy, resolves=resolves, egress=policy)
            outcome = await post("http://good.test/")
            assert (outcome.kind, proxy.connection_count) == (BLOCKED, 0)
            assert outcome.error == "the host is not one that this service may send to"


BROKEN = {
    "bad credentials": b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
    "not found": b"HTTP/1.1 404 Not Found\r\n\r\n",
    "too many": b"HTTP/1.1 429 Too Many\r\n\r\n",
    "a redirect": b"HTTP/1.1 302 Found\r\nlocation: http://10.0.0.1/\r\n\r\n",
    "an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n",
    "garbage": b"\x05\x00 garbage\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "an endless head": b"HTTP/1.1 200 OK\r\nx: " + b"y" * HEAD_BYTES_MAX,
    "502 and no witness": b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
    "503 and no witness": b"HTTP/1.1 503 Unavailable\r\n\r\n",
    "403 and no witness": b"HTTP/1.1 403 Forbidden\r\n\r\n",
}


class TestFaults:
    """A failure of the proxy is an internal error: no attempt is spent, nothing is disabled."""

    @pytest.mark.parametrize("name", BROKEN)
    async def test_unusable_response_of_the_proxy_is_an_internal_error(
        self, make_post: MakePost, name: str
    ) -> None:
        async with Proxy(answers={"*": BROKEN[name]}) as proxy:
            outcome = await through(make_post, proxy)("http://good.test/", timeout_s=2.0)
        assert outcome.kind is INTERNAL_ERROR
        assert "the egress proxy" in outcome.error

    async def test_refused_connection_to_the_proxy_is_an_internal_error(
        self, make_post: MakePost, closed_port: int
    ) -> None:
        post = make_post(proxy=EgressProxy("127.0.0.1", closed_port), names=NAMES)
        outcome = await post("http://good.test/", failover_urls=["http://other.test/"])
        assert (outcome.kind, outcome.error) == (
            INTERNAL_ERROR,
            "the egress proxy cannot be reached",
        )

    async def test_unresolvable_name_of_the_proxy_is_an_internal_error(
        self, make_post: MakePost
    ) -> None:
        post = make_post(proxy=EgressProxy("nowhere.test", 3128), names=NAMES)
        assert (await post("http://good.test/")).kind is INTERNAL_ERROR

    async def test_silent_proxy_is_an_internal_error(
        self, make_post: MakePost, silent_port: int
    ) -> None:
        post = make_post(proxy=EgressProxy("127.0.0.1", silent_port), names=NAMES)
        assert (await post("http://good.test/", timeout_s=0.4)).kind is INTERNAL_ERROR

    async def test_next_address_of_the_proxy_is_tried_after_a_silent_or_refusing_one(
        self, make_post: MakePost, silent_port: int
    ) -> None:
        names = NAMES | {"proxy.test": ["127.0.0.1", "127.0.0.3", "127.0.0.2"]}

        async def script(connected: Connected) -> None:
            await connected.read_request()
            await connected.write(OPEN)
            await answering(OK)(connected)

        async with Receiver(script, host="127.0.0.2", port=silent_port):
            post = make_post(proxy=EgressProxy("proxy.test", silent_port), names=names)
            outcome = await post("http://good.test/", timeout_s=3.0)
        assert (outcome.kind, outcome.remote_address) == (ACCEPTED, "127.0.0.1")

    async def test_proxy_that_closes_or_resets_the_connection_is_an_internal_error(
        self, make_post: MakePost
    ) -> None:
        async def leave(connected: Connected) -> None:
            await connected.reader.read(1)
            if connected.number % 2:
                connected.reset()

        async with Receiver(leave) as proxy:
            post = make_post(proxy=EgressProxy("127.0.0.1", proxy.port), names=NAMES)
            for _ in range(2):
                assert (await post("http://good.test/")).kind is INTERNAL_ERROR

    @pytest.mark.parametrize(
        "answer, kind",
        [
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", BLOCKED),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", AttemptOutcome.CONNECTION_FAILED),
            (b"HTTP/1.1 503 Unavailable\r\n\r\n", AttemptOutcome.CONNECTION_FAILED),
            (b"HTTP/1.1 504 Gateway Timeout\r\n\r\n", AttemptOutcome.TIMEOUT),
            (b"", AttemptOutcome.TIMEOUT),
        ],
        ids=["403", "502", "503", "504", "silence"],
    )
    async def test_failure_counts_against_the_target_only_while_another_is_reached(
        self, make_post: MakePost, answer: bytes, kind: AttemptOutcome
    ) -> None:
        async with Proxy() as proxy, Receiver(answering(OK)) as receiver:
            dead = f"127.0.0.9:{receiver.port}"
            proxy.answers[dead] = answer
            post = through(make_post, proxy)
            assert (await post(receiver.url(host="good.test"))).kind is ACCEPTED
            outcome = await post(receiver.url(host="dead.test"), timeout_s=2.0)
            assert outcome.kind is kind
            assert proxy.asked[1:] == [dead, f"127.0.0.1:{receiver.port}"]
            # The proxy is cut off: no target is reached, and no failure counts.
            proxy.answers["*"] = b"HTTP/1.1 503 Unavailable\r\n\r\n"
            cut_off = through(make_post, proxy)
            assert (
                await cut_off(receiver.url(host="dead.test"), timeout_s=2.0)
            ).kind is INTERNAL_ERROR

    async def test_target_of_one_tenant_is_a_witness_for_that_tenant_only(
        self, make_post: MakePost
    ) -> None:
        """The proxy may reach a target near it even when its uplink is down."""
        async with (
            Proxy() as proxy,
            Receiver(answering(OK)) as receiver,
            Receiver(answering(OK), host="127.0.0.2", port=receiver.port),
        ):
            post = through(make_post, proxy)
            near, far = receiver.url(host="good.test"), receiver.url(host="other.test")
            assert (await post(far, tenant_id="acme")).kind is ACCEPTED
            assert (await post(near, tenant_id="hostile")).kind is ACCEPTED
            for place in ("127.0.0.2", "127.0.0.9"):  # the uplink is gone
                proxy.answers[f"{place}:{receiver.port}"] = BROKEN["502 and no witness"]
            dead = receiver.url(host="dead.test")
            for tenant_id in ("acme", "new"):
                assert (await post(dead, tenant_id=tenant_id)).kind is INTERNAL_ERROR
            own = await post(dead, tenant_id="hostile")
            assert own.kind is AttemptOutcome.CONNECTION_FAILED

    async def test_targets_of_two_tenants_are_witnesses_for_all_tenants(
        self, make_post: MakePost
    ) -> None:
        async with (
            Proxy() as proxy,
            Receiver(answering(OK)) as receiver,
            Receiver(answering(OK), host="127.0.0.2", port=receiver.port),
        ):
            post = through(make_post, proxy)
            for host, tenant_id in (("good.test", "acme"), ("other.test", "other")):
                outcome = await post(receiver.url(host=host), tenant_id=tenant_id)
                assert outcome.kind is ACCEPTED
            proxy.answers[f"127.0.0.9:{receiver.port}"] = BROKEN["502 and no witness"]
            outcome = await post(receiver.url(host="dead.test"), tenant_id="new")
            assert outcome.kind is AttemptOutcome.CONNECTION_FAILED

    async def test_dead_targets_share_one_check_of_the_witness(self, make_post: MakePost) -> None:
        names = NAMES | {f"dead{number}.test": [f"127.0.1.{number}"] for number in range(1, 9)}
        async with Proxy() as proxy, Receiver(answering(OK)) as receiver:
            witness = f"127.0.0.1:{receiver.port}"
            post = through(make_post, proxy, names=names)
            await post(receiver.url(host="good.test"))
            for number in range(1, 9):
                proxy.answers[f"127.0.1.{number}:{receiver.port}"] = BROKEN["502 and no witness"]
                outcome = await post(receiver.url(host=f"dead{number}.test"))
                assert outcome.kind is AttemptOutcome.CONNECTION_FAILED
            assert proxy.asked.count(witness) == 2

    async def test_target_that_sends_first_through_the_tunnel_is_a_protocol_error(
        self, make_post: MakePost
    ) -> None:
        async with Proxy(answers={"*": OPEN + b"220 mail.example ESMTP\r\n"}) as proxy:
            outcome = await through(make_post, proxy)("http://good.test/")
        assert outcome.kind is AttemptOutcome.PROTOCOL_ERROR

    async def test_failure_and_recovery_of_the_proxy_are_logged_once(
        self, make_post: MakePost
    ) -> None:
        async with Proxy(answers={"*": BROKEN["bad credentials"]}) as proxy:
            post = through(make_post, proxy)
            async with Receiver(answering(OK)) as receiver:
                with capture_logs() as logs:
                    for _ in range(3):
                        await post(receiver.url(host="good.test"))
                    proxy.answers.clear()
                    for _ in range(2):
                        await post(receiver.url(host="good.test"))
        assert [(line["event"], line.get("error")) for line in logs] == [
            ("egress_proxy_failed", "the egress proxy answered 407"),
            ("egress_proxy_recovered", None),
        ]


@pytest.fixture
def other_port() -> Iterator[int]:
    """Return a listening port of 127.0.0.1 that must receive no connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"])
async def test_proxy_variables_of_the_environment_are_ignored(
    make_post: MakePost, monkeypatch: pytest.MonkeyPatch, other_port: int, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{other_port}")
    async with Receiver(answering(OK)) as receiver:
        assert (await make_post()(receiver.url())).kind is ACCEPTED
