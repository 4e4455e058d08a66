"""The way out as a whole node takes it: what its settings say reaches its deliveries."""

from __future__ import annotations

import ssl
from pathlib import Path

from structlog.testing import capture_logs

from hookline import HooklineClient
from hookline.v1.delivery_pb2 import DELIVERY_STATE_PENDING, DELIVERY_STATE_SUCCEEDED, Delivery
from hookline.v1.delivery_service_pb2 import ListDeliveriesRequest
from hookline.v1.event_pb2 import Event
from tests.app.test_node import started, subscribe
from tests.certificates import Authority
from tests.targets.http.proxy import Proxy
from tests.targets.http.receiver import OK, Receiver, answering
from tests.waiting import until


async def only_delivery(client: HooklineClient) -> Delivery:
    request = ListDeliveriesRequest(tenant="tenants/default")
    [delivery] = (await client.deliveries.ListDeliveries(request)).deliveries
    return delivery


async def is_delivered(client: HooklineClient) -> bool:
    return (await only_delivery(client)).state == DELIVERY_STATE_SUCCEEDED


async def test_configured_proxy_and_authorities_are_used(database_url: str, tmp_path: Path) -> None:
    """While the proxy rejects requests, no attempt counts and no subscription is disabled."""
    authority = Authority(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.issue("target", "127.0.0.1"))
    async with Proxy() as proxy, Receiver(answering(OK), tls=tls) as receiver:
        proxy.answers["*"] = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
        with capture_logs() as logs:
            async with started(
                database_url,
                HOOKLINE_EGRESS_PROXY=f"http://out:hunter2@127.0.0.1:{proxy.port}",
                HOOKLINE_EGRESS_CA_FILE=str(authority.file),
            ) as (_, client):
                await subscribe(client, receiver.url())
                await client.publish("default", [Event(type="a.b", json_data="{}")])
                await until(lambda: len(proxy.asked) > 1, "it was tried again")
                waiting = await only_delivery(client)
                assert (waiting.state, waiting.attempt_count) == (DELIVERY_STATE_PENDING, 0)
                proxy.answers.clear()
                await until(lambda: is_delivered(client), "it is delivered")
                assert (await only_delivery(client)).attempt_count == 1
    assert {*proxy.asked} == {f"127.0.0.1:{receiver.port}"}
    assert len(receiver.requests) == 1
    events = [line["event"] for line in logs]
    assert events.count("egress_proxy_failed") == events.count("egress_proxy_recovered") == 1
    assert "hunter2" not in repr(logs)


async def test_host_denied_later_receives_no_more_requests(database_url: str) -> None:
    async with Receiver(answering(OK)) as receiver:
        async with started(database_url) as (_, client):
            await subscribe(client, receiver.url(host="localhost"))
        denied = {"HOOKLINE_EGRESS_DENY_HOSTS": "localhost"}
        async with started(database_url, **denied) as (_, client):
            await client.publish("default", [Event(type="a.b", json_data="{}")])

            async def outcome() -> str:
                return (await only_delivery(client)).last_attempt.error

            async def is_tried() -> bool:
                return bool(await outcome())

            await until(is_tried, "it was tried")
            assert await outcome() == "the host is not one that this service may send to"
        assert receiver.connection_count == 0
