"""The service as an operator meets it: a real grpcurl, a real receiver, an independent verifier."""

import json
import pathlib
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest
import standardwebhooks

from hookline_service.cli.receiver import Arrival, Receiver
from tests.e2e.processes import Dev
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

SERVICES = {
    "hookline.v1.AccessService",
    "hookline.v1.DeliveryService",
    "hookline.v1.EventService",
    "hookline.v1.EventTypeService",
    "hookline.v1.OperationsService",
    "hookline.v1.SubscriptionService",
    "hookline.v1.TenantService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


class Grpcurl:
    """grpcurl, pointed at a running service."""

    def __init__(self, program: pathlib.Path, target: str) -> None:
        self._program = program
        self._target = target

    def run(self, *arguments: str, options: tuple[str, ...] = ()) -> str:
        return subprocess.run(
            [self._program, "-plaintext", *options, self._target, *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def call(self, method: str, request: str) -> Any:  # noqa: ANN401 - JSON
        answer = self.run(f"hookline.v1.{method}", options=("-d", request))
        return json.loads(answer)

    def refused(self, method: str, request: str) -> str:
        """What it prints of a call that is refused."""
        result = subprocess.run(
            [self._program, "-plaintext", "-d", request, self._target, f"hookline.v1.{method}"],
            check=False,
            capture_output=True,
            text=True,
        )
        assert result.returncode != 0
        return result.stderr


@pytest.fixture
def grpc(grpcurl: pathlib.Path, dev: Dev) -> Grpcurl:
    return Grpcurl(grpcurl, dev.target)


@pytest.fixture
def arrivals() -> list[Arrival]:
    return []


@pytest.fixture
async def receiver(arrivals: list[Arrival]) -> AsyncIterator[Receiver]:
    async with Receiver("test", arrivals.append) as listening:
        yield listening


def test_list_shows_all_services(grpc: Grpcurl) -> None:
    assert set(grpc.run("list").split()) >= SERVICES


@pytest.mark.parametrize(
    "symbol, comment",
    [
        ("hookline.v1.EventService", "// Publishes and reads events."),
        ("hookline.v1.Subscription", "// A subscription: which events are delivered"),
        ("hookline.v1.ErrorReason", "// Example:"),
        ("hookline.v1.PublishEventsRequest", "// Required. 1 to 1,000 events"),
    ],
)
def test_describe_shows_the_comments(grpc: Grpcurl, symbol: str, comment: str) -> None:
    assert comment in grpc.run("describe", symbol)


def test_health_says_serving_for_the_whole_and_for_each_service(grpc: Grpcurl) -> None:
    for service in ("", "hookline.v1.EventService"):
        answer = grpc.run(
            "grpc.health.v1.Health/Check", options=("-d", json.dumps({"service": service}))
        )
        assert json.loads(answer) == {"status": "SERVING"}


async def test_publish_deliver_verify_and_read_back(
    grpc: Grpcurl, receiver: Receiver, arrivals: list[Arrival]
) -> None:
    subscription = {"event_types": ["order.created"], "http": {"url": receiver.url}}
    created = grpc.call(
        "SubscriptionService/CreateSubscription",
        json.dumps({"tenant": "tenants/default", "subscription": subscription}),
    )
    published = grpc.call(
        "EventService/PublishEvents",
        r'{"tenant":"tenants/default","events":[{"type":"order.created","json_data":"{\"id\":1}"}]}',
    )
    (result,) = published["results"]
    assert result["deliveryCount"] == 1
    await until(lambda: len(arrivals) == 1, "the webhook arrives")

    (arrival,) = arrivals
    verified = standardwebhooks.Webhook(created["signingSecret"]).verify(
        arrival.body, arrival.headers
    )
    assert verified["type"] == "order.created"
    assert verified["data"] == {"id": 1}
    assert arrival.headers["webhook-id"] == result["name"].rpartition("/")[2]
    assert arrival.headers["user-agent"].startswith("hookline/")

    def delivered() -> dict[str, Any]:
        listed = grpc.call(
            "DeliveryService/ListDeliveries",
            json.dumps({"tenant": "tenants/default", "event": result["name"]}),
        )
        (delivery,) = listed["deliveries"]
        return dict(delivery)

    await until(lambda: delivered()["state"] == "DELIVERY_STATE_SUCCEEDED", "it is recorded")
    delivery = delivered()
    read = grpc.call("DeliveryService/GetDelivery", json.dumps({"name": delivery["name"]}))
    assert read["delivery"]["attemptCount"] == 1
    assert read["delivery"]["subscription"] == created["subscription"]["name"]
    attempts = grpc.call("DeliveryService/ListAttempts", json.dumps({"delivery": delivery["name"]}))
    (attempt,) = attempts["attempts"]
    assert attempt["httpStatus"] == 200
    assert attempt["url"] == receiver.url


def test_a_refusal_names_every_field_and_a_reason(grpc: Grpcurl) -> None:
    done = grpc.refused(
        "EventService/PublishEvents",
        '{"tenant":"tenants/default","events":[{"type":"a..b"},{"type":"c","json_data":"{"}]}',
    )
    assert "Code: InvalidArgument" in done
    assert "events[0].type" in done
    assert "events[1].json_data" in done
    assert '"reason": "PAYLOAD_INVALID"' in done
