"""What an operator types against a running service: status, event, listen."""

import asyncio
import pathlib
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence

import pytest
from google.protobuf.duration_pb2 import Duration

from hookline import HooklineClient
from hookline.v1.delivery_service_pb2 import CancelDeliveryRequest, ListDeliveriesRequest
from hookline.v1.event_pb2 import Event
from hookline.v1.subscription_service_pb2 import (
    CreateSubscriptionRequest,
    DeleteSubscriptionRequest,
    PauseSubscriptionRequest,
)
from hookline.v1.tenant_service_pb2 import CreateTenantRequest
from hookline_service import VERSION
from hookline_service.cli.receiver import Receiver
from hookline_service.cli.wording import last_part
from tests.e2e.processes import HOOKLINE, Dev, environment, run_hookline
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def client(dev: Dev) -> AsyncIterator[HooklineClient]:
    async with HooklineClient(dev.target) as connected:
        yield connected


async def subscribe(
    client: HooklineClient, tenant: str, url: str, schedule_s: Sequence[int] = (0, 600)
) -> str:
    """A tenant with one subscription to everything; the subscription's name."""
    await client.tenants.CreateTenant(CreateTenantRequest(tenant_id=tenant))
    request = CreateSubscriptionRequest(tenant=f"tenants/{tenant}", subscription_id="all")
    request.subscription.event_types.append("*")
    request.subscription.http.url = url
    request.subscription.retry_policy.schedule.extend(Duration(seconds=s) for s in schedule_s)
    return (await client.subscriptions.CreateSubscription(request)).subscription.name


def event_output(dev: Dev, event: str) -> str:
    """What `hookline event` says."""
    done = run_hookline("event", event, "--server", dev.target)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_health_answers_whether_it_serves(dev: Dev) -> None:
    done = run_hookline("health", "--server", dev.target)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")


async def test_health_reports_a_server_that_does_not_speak_grpc() -> None:
    async with Receiver("test", lambda _arrival: None) as receiver:
        server = receiver.url.removeprefix("http://").rstrip("/")
        done = await asyncio.to_thread(run_hookline, "health", "--server", server)
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not answer in gRPC" in done.stderr


def test_health_of_nothing_is_an_error() -> None:
    done = run_hookline("health", "--server", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing answers at 127.0.0.1:1" in done.stderr


async def test_an_event_that_waits_for_its_retry(dev: Dev, client: HooklineClient) -> None:
    async with Receiver("test", lambda _arrival: None, answers=[503]) as receiver:
        subscription = await subscribe(client, "waits", receiver.url)
        (published,) = await client.publish(
            "waits", [Event(type="a.b", subject="cart/7", json_data="{}")]
        )
        event = last_part(published.name)
        await until(
            lambda: "after 1 attempt" in event_output(dev, event), "the attempt is recorded"
        )
    lines = event_output(dev, event).splitlines()
    assert lines[0] == published.name
    assert lines[1].startswith("  a.b, accepted ")
    assert lines[2] == "  subject cart/7"
    done = "\n".join(lines[2:])
    assert f"for {subscription}: PENDING after 1 attempt" in done
    assert re.search(r"1  [\d:.]+  HTTP error 503 after [\d.]+ m?s, body", done)
    assert re.search(r"next: attempt 2 is due at [\d:.]+, in [89]\.?\d* min", done)


async def test_an_event_behind_an_open_circuit(dev: Dev, client: HooklineClient) -> None:
    subscription = await subscribe(client, "down", "http://127.0.0.1:1024/")
    event = Event(type="a.b", json_data="{}")
    await client.publish("down", [event] * 10)
    await until(
        lambda: f"{subscription}  OPEN" in run_hookline("status", "--server", dev.target).stdout,
        "the circuit opens",
    )
    # The probes of the open circuit take those before it.
    *_, published = await client.publish("down", [event] * 20)
    waits = "next: it waits for its target, which failed several times in a row"
    await until(lambda: waits in event_output(dev, published.name), "the last event waits")
    assert f"for {subscription}: PENDING after " in event_output(dev, published.name)


async def test_an_event_that_is_held(dev: Dev, client: HooklineClient) -> None:
    subscription = await subscribe(client, "held", "http://127.0.0.1:1024/")
    await client.subscriptions.PauseSubscription(PauseSubscriptionRequest(name=subscription))
    (published,) = await client.publish("held", [Event(type="a.b", json_data="{}")])
    done = event_output(dev, published.name)
    assert "PENDING after 0 attempts" in done
    assert "held until ResumeSubscription: its subscription is paused" in done


async def test_an_event_that_was_cancelled_says_by_what(dev: Dev, client: HooklineClient) -> None:
    subscription = await subscribe(client, "cancelled", "http://127.0.0.1:1024/")
    events = [Event(type="a.b", json_data="{}") for _ in range(2)]
    by_hand, by_deletion = [result.name for result in await client.publish("cancelled", events)]
    listed = await client.deliveries.ListDeliveries(
        ListDeliveriesRequest(tenant="tenants/cancelled", event=by_hand)
    )
    (delivery,) = listed.deliveries
    await client.deliveries.CancelDelivery(CancelDeliveryRequest(name=delivery.name))
    done = event_output(dev, by_hand)
    assert "next: nothing: it was cancelled; RetryDelivery starts it again" in done
    await client.subscriptions.DeleteSubscription(DeleteSubscriptionRequest(name=subscription))
    ended = "next: nothing: its subscription was deleted"
    await until(lambda: ended in event_output(dev, by_deletion), "the other is cancelled with it")


async def test_an_event_that_was_given_up(dev: Dev, client: HooklineClient) -> None:
    await subscribe(client, "dead", "http://127.0.0.1:1024/", schedule_s=[0])
    (published,) = await client.publish("dead", [Event(type="a.b", json_data="{}")])
    await until(lambda: "EXHAUSTED" in event_output(dev, published.name), "it is given up")
    done = event_output(dev, published.name)
    assert "connection failed" in done
    assert "RetryDelivery starts it again" in done


async def test_an_event_that_was_delivered_and_one_without_subscriptions(
    dev: Dev, client: HooklineClient
) -> None:
    async with Receiver("test", lambda _arrival: None) as receiver:
        await subscribe(client, "arrived", receiver.url)
        (published,) = await client.publish("arrived", [Event(type="a.b", json_data="{}")])
        await until(lambda: "SUCCEEDED" in event_output(dev, published.name), "it arrives")
        assert "next: nothing: the target accepted it" in event_output(dev, published.name)
    await client.tenants.CreateTenant(CreateTenantRequest(tenant_id="unwanted"))
    (published,) = await client.publish("unwanted", [Event(type="a.b", json_data="{}")])
    assert "no subscription matched it" in event_output(dev, published.name)


@pytest.mark.parametrize(
    "name, said",
    [
        ("evt_01m85t4f3af31a4kh4hhqf8qqm", "deleted after HOOKLINE_RETENTION_DAYS"),
        ("tenants/x/events/y", "answered INVALID_ARGUMENT (FIELD_INVALID): name: "),
        ("nonsense", "answered INVALID_ARGUMENT (FIELD_INVALID): name: "),
    ],
)
def test_an_event_that_there_is_not(dev: Dev, name: str, said: str) -> None:
    done = run_hookline("event", name, "--server", dev.target)
    assert done.returncode == 1
    assert done.stdout == ""
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_status_lists_the_nodes(dev: Dev) -> None:
    done = run_hookline("status", variables={"HOOKLINE_SERVER": dev.target})
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"Hookline {VERSION} at {dev.target}"
    assert re.match(r"pending  \d+", lines[1])
    assert re.match(r"dead     \d+", lines[2])
    assert lines[3] == "nodes    1"
    assert "256 of 256 buckets" in lines[4]
    assert lines[4].endswith("(this one)")
    assert re.match(r"lanes    \d+ on this node: ", lines[5])


async def test_listen_shows_and_verifies_what_a_subscription_sends(
    client: HooklineClient, tmp_path: pathlib.Path
) -> None:
    shown = tmp_path / "shown"
    with shown.open("w") as output:
        listening = start_listening(output.fileno(), "--secret", SECRET, "--answer", "202")
        try:
            await until(lambda: "listening on " in shown.read_text(), "it listens")
            url = re.search(r"listening on (\S+);", shown.read_text())
            assert url is not None
            await client.tenants.CreateTenant(CreateTenantRequest(tenant_id="listened"))
            request = CreateSubscriptionRequest(tenant="tenants/listened", signing_secret=SECRET)
            request.subscription.event_types.append("*")
            request.subscription.http.url = url[1]
            await client.subscriptions.CreateSubscription(request)
            (published,) = await client.publish(
                "listened", [Event(type="a.b", json_data='{"é":1}')]
            )
            await until(lambda: '"é": 1' in shown.read_text(), "it shows the webhook")
            assert f"{last_part(published.name)}  verified  -> 202" in shown.read_text()
            listening.send_signal(signal.SIGINT)
            assert listening.wait(20) == 128 + signal.SIGINT
        finally:
            listening.kill()
            listening.wait()


SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def start_listening(output: int, *arguments: str) -> "subprocess.Popen[bytes]":
    """`hookline listen` on a port that is free."""
    return subprocess.Popen(
        [*HOOKLINE, "listen", "--port", "0", *arguments],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=output,
    )
