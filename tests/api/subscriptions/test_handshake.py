"""The CloudEvents handshake: when it is sent, and the effect of a refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest

from hookline.v1.event_pb2 import Event
from hookline.v1.policy_pb2 import DeliveryLimits
from hookline.v1.subscription_service_pb2 import SendTestEventRequest
from hookline.v1.target_pb2 import HttpTarget
from hookline_service.domain import subscription as domain
from hookline_service.pipeline.actions.target_handshakes import TargetHandshakes
from hookline_service.store.subscription_secrets import UNCHANGED
from hookline_service.store.subscriptions import Subscriptions
from hookline_service.targets.http.egress import EgressPolicy
from hookline_service.targets.http.handshake import (
    ConsentRefusedError,
    Handshake,
    HandshakeUnavailableError,
)
from hookline_service.targets.http.sender import prepare_endpoints
from hookline_service.targets.http.transport import WebhookTransport
from tests.api.control import ORDERS, ORIGIN, Control, controlling, orders
from tests.api.refusals import refusal
from tests.targets.http.receiver import Connected, Receiver, Script, answer
from tests.waiting import until

ANY_ORIGIN = answer("200 OK", b"", "WebHook-Allowed-Origin: *")


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url) as control:
        yield control


def consenting(consent: bytes = ANY_ORIGIN) -> Script:
    """Answer OPTIONS as given, and every other request with 200."""

    async def script(connected: Connected) -> None:
        while True:
            request = await connected.read_request()
            is_question = request.request_line.startswith(b"OPTIONS ")
            await connected.write(consent if is_question else answer())

    return script


def asking(receiver: Receiver, path: str = "/hook", **fields: object) -> HttpTarget:
    return HttpTarget(url=receiver.url(path), require_handshake=True, **fields)  # type: ignore[arg-type]  # a test's own fields


def lines(receiver: Receiver) -> list[str]:
    return [request.request_line.decode().strip() for request in receiver.requests]


async def test_target_gets_a_handshake_before_any_delivery(control: Control) -> None:
    async with Receiver(consenting()) as receiver:
        wanted = orders(
            http=asking(receiver, secret_headers={"authorization": "B x"}),
            limits=DeliveryLimits(max_per_second=0.5),
        )
        made = (await control.create(wanted)).subscription
        event = Event(type="order.created", json_data="{}")
        await control.subscriptions.SendTestEvent(SendTestEventRequest(name=ORDERS, event=event))
    assert lines(receiver) == ["OPTIONS /hook HTTP/1.1", "POST /hook HTTP/1.1"]
    headers = receiver.requests[0].headers
    assert headers["webhook-request-origin"] == ORIGIN
    assert headers["webhook-request-rate"] == "30"
    assert headers["authorization"] == "B x"
    assert not {"webhook-signature", "webhook-id"} & headers.keys()
    assert made.http.require_handshake
    assert made.http.allowed_per_minute == 0


async def test_no_handshake_is_sent_when_none_is_due(control: Control) -> None:
    async with Receiver(consenting()) as receiver:
        await control.create(orders(http=HttpTarget(url=receiver.url())))
    assert lines(receiver) == []


@pytest.mark.parametrize(
    "consent, allowed",
    [
        (answer("204 No Content", b"", f"WebHook-Allowed-Origin: {ORIGIN}"), None),
        (answer("200 OK", b"", f"webhook-allowed-origin: {ORIGIN.upper()}"), None),
        (answer("200 OK", b"", "WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: *"), None),
        (answer("200 OK", b"", "WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: 90"), 90),
    ],
)
async def test_allowed_rate_of_a_target_is_stored(
    control: Control, consent: bytes, allowed: int | None
) -> None:
    async with Receiver(consenting(consent)) as receiver:
        await control.create(orders(http=asking(receiver)))
        seen = (await control.get()).http
        assert seen.allowed_per_minute == (allowed or 0)
        changed = await control.update(orders(display_name="new"), ["display_name"])
        assert changed.http == seen


async def test_allowed_rate_limits_the_lane(control: Control) -> None:
    consent = answer("200 OK", b"", "WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: 90")
    async with Receiver(consenting(consent)) as receiver:
        for name, rate in (("slower", 1.0), ("faster", 50.0)):
            limits = DeliveryLimits(max_per_second=rate)
            await control.create(orders(http=asking(receiver), limits=limits), name)
        await control.create(orders(http=asking(receiver)), "unsaid")
        assert (await control.publish()).delivery_count == 3
        lanes = control.rig.lanes
        await until(
            lambda: sum(lane.config is not None for lane in lanes.all()) == 3,
            "all lanes have their configuration",
        )
        rates = {
            lane.name.rpartition("/")[2]: lane.config.max_per_second
            for lane in lanes.all()
            if lane.config
        }
    assert rates == {"slower": 1.0, "faster": 1.5, "unsaid": 1.5}


REFUSALS: dict[str, tuple[bytes, str]] = {
    "405": (answer("405 Method Not Allowed", b"no"), "answered 405"),
    "no word": (answer("200 OK"), "WebHook-Allowed-Origin is not"),
    "another": (answer("200 OK", b"", "WebHook-Allowed-Origin: a.b"), "Allowed-Origin is not"),
    "a redirect": (answer("302 Found", b"", "location: https://a.b/"), "answered 302"),
    "a rate that is none": (
        answer("200 OK", b"", "WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: -1"),
        "WebHook-Allowed-Rate is neither",
    ),
    "no HTTP": (b"nonsense\r\n\r\n", "was not reached"),
}


@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_refused_handshake_prevents_the_change(control: Control, kind: str) -> None:
    consent, words = REFUSALS[kind]
    await control.create()
    before = await control.get()
    async with Receiver(consenting(consent)) as receiver:
        wanted = orders(http=asking(receiver, "/hook?token=geheim"))
        for call in (control.create(wanted, "new"), control.update(wanted)):
            found = await refusal(call)
            assert (found.code, found.reason) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "HANDSHAKE_REFUSED",
            )
            assert found.metadata["url"] == receiver.url("/hook?token=[redacted]")
            assert "geheim" not in str(found)
            assert words in found.message
    assert await control.get() == before
    assert (await refusal(control.get("tenants/acme/subscriptions/new"))).reason == (
        "SUBSCRIPTION_NOT_FOUND"
    )


async def test_disallowed_address_gets_no_handshake() -> None:
    async with Receiver(consenting()) as receiver:
        transport = WebhookTransport(egress=EgressPolicy())
        endpoints = prepare_endpoints(domain.HttpTarget(url=receiver.url()), user_agent="x")
        with pytest.raises(ConsentRefusedError, match="neither public nor expressly allowed"):
            await Handshake(transport, ORIGIN).ask(endpoints, 5.0, None)
        await transport.aclose()
        with pytest.raises(HandshakeUnavailableError):
            await Handshake(transport, ORIGIN).ask(endpoints, 5.0, None)
    assert receiver.connection_count == 0


async def test_handshake_is_repeated_with_every_url_only_when_one_changes(control: Control) -> None:
    async with Receiver(consenting()) as receiver:
        others = [receiver.url("/b")]
        target = asking(receiver, failover_urls=others, secret_headers={"x-a": "s3cr3t"})
        await control.create(orders(http=target))
        assert lines(receiver) == ["OPTIONS /hook HTTP/1.1", "OPTIONS /b HTTP/1.1"]
        await control.update(orders(labels={"a": "b"}), ["labels"])
        await control.update(await control.get(), ["*"])
        await control.rotate()
        assert len(receiver.requests) == 2
        new = HttpTarget(url=receiver.url("/c"), secret_headers={"x-a": "s3cr3t"})
        await control.update(orders(http=new), ["http.url", "http.secret_headers"])
        assert lines(receiver)[2:] == ["OPTIONS /c HTTP/1.1", "OPTIONS /b HTTP/1.1"]
        assert receiver.requests[-1].headers["x-a"] == "s3cr3t"
        off = orders(http=HttpTarget(require_handshake=False))
        changed = await control.update(off, ["http.require_handshake"])
        assert not changed.http.require_handshake
        assert len(receiver.requests) == 4
        on = orders(http=HttpTarget(require_handshake=True))
        await control.update(on, ["http.require_handshake"])
        assert len(receiver.requests) == 6
        assert receiver.requests[-1].headers["x-a"] == "s3cr3t", "kept, and sent"


async def test_concurrently_stored_secrets_are_not_sent_to_a_new_url(
    control: Control,
) -> None:
    """The subscription gets secrets for its old URL after the change of the URL was validated."""
    rig = control.rig
    consents = TargetHandshakes(
        rig.database, rig.secrets, Handshake(rig.transport, ORIGIN), user_agent="x"
    )
    stored = Subscriptions(rig.database, rig.secrets)
    async with Receiver(consenting()) as receiver, Receiver(consenting()) as other:
        target = asking(receiver, secret_headers={"x-a": "s3cr3t"})
        await control.create(orders(http=target))
        seen = await stored.get("acme", "orders")
        elsewhere = replace(seen, target=replace(seen.target, url=other.url()))
        await consents.ask(elsewhere, UNCHANGED, seen.uid)
        assert "x-a" not in other.requests[0].headers
        await consents.ask(seen, UNCHANGED, seen.uid)
        assert receiver.requests[-1].headers["x-a"] == "s3cr3t"
