"""`hookline demo`: publishes events and shows each webhook, retry and final state.

Six steps: a service and two receivers start; a tenant, event types and subscriptions are created
over gRPC; events are published; webhooks arrive, two of them are answered with 500 and retried; the
final states are read back over gRPC; one event's trace is shown as a tree. Each step is checked,
and one unmet expectation makes the demo fail.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence

from hookline import HooklineClient
from hookline.errors import HooklineError
from hookline.v1.delivery_pb2 import DELIVERY_STATE_PENDING, DELIVERY_STATE_SUCCEEDED, Delivery
from hookline.v1.delivery_service_pb2 import (
    GetDeliveryRequest,
    ListAttemptsRequest,
    ListDeliveriesRequest,
)
from hookline.v1.event_pb2 import Event
from hookline.v1.event_type_pb2 import EventType
from hookline.v1.event_type_service_pb2 import CreateEventTypeRequest
from hookline.v1.subscription_service_pb2 import CreateSubscriptionRequest
from hookline.v1.tenant_pb2 import Tenant
from hookline.v1.tenant_service_pb2 import CreateTenantRequest
from hookline.webhook import Verifier, receiving
from hookline_service.cli.demo_service import DemoService
from hookline_service.cli.failure import CommandError
from hookline_service.cli.receiver import Arrival, Receiver
from hookline_service.cli.wording import last_part, state_of, time_of, until, wording_of_attempt
from hookline_service.telemetry.trace_tree import OwnSpans, tree_of

TENANT = "tenants/acme"
_TYPES = {
    "user.registered": (
        '{"type":"object","required":["id","email"],"properties":{"id":{"type":"integer"}}}'
    ),
    "order.created": (
        '{"type":"object","required":["id","amount"],"properties":{"amount":{"type":"number"}}}'
    ),
}
_EVENTS = {
    "user.registered": '{"id":7,"email":"ada@acme.example"}',
    "order.created": '{"id":1001,"amount":49.9,"currency":"EUR"}',
}
_RETRY_AFTER_S = (0.0, 1.0, 1.0, 1.0)
"""The shaky receiver's schedule: four attempts, a second apart."""
_REFUSALS = 2
_PATIENCE_S = 30.0
_POLL_S = 0.05
_TRACE_PATIENCE_S = 10.0


def run(asked: argparse.Namespace) -> int:
    """Play the demo; 0 if all of it happened."""
    return asyncio.run(_run_until_signalled(is_broken=asked.break_receiver))


async def _run_until_signalled(*, is_broken: bool) -> int:
    playing = asyncio.ensure_future(Demo(is_broken=is_broken).play())
    caught: list[int] = []

    def interrupt(number: int) -> None:
        if not caught:  # a second one must not interrupt the tidying up
            caught.append(number)
            playing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    try:
        return await playing
    except HooklineError as error:
        raise CommandError(f"the demo failed, for the service answered {error}", code=1) from error
    except asyncio.CancelledError:
        if not caught:
            raise
        print("\nhookline demo: interrupted; nothing is left running", file=sys.stderr)
        return 128 + caught[0]


class Demo:
    """One performance."""

    def __init__(self, *, is_broken: bool) -> None:
        self._arrivals: asyncio.Queue[Arrival] = asyncio.Queue()
        self._seen: list[Arrival] = []
        self._unmet: list[str] = []
        self._retries_shown = 0
        self._own_spans = OwnSpans("demo")
        self._trace_id = ""
        put = self._arrived
        self._crm = Receiver("crm", put)
        answers = [500] if is_broken else [500] * _REFUSALS + [200]
        self._billing = Receiver("billing", put, answers=answers)
        self._began_at = time.monotonic()

    async def play(self) -> int:
        """The whole story; the exit code."""
        print("Hookline demo: events in over gRPC, signed webhooks out.\n")
        _print("starting the service, with a Postgres of its own, in a directory of its own ...")
        async with self._crm, self._billing:
            service = DemoService()
            async with service, HooklineClient(service.target) as client:
                _print(f"ready after {time.monotonic() - self._began_at:.1f} s on {service.target}")
                _print(f"receiver crm     on {self._crm.url}  accepts everything")
                _print(
                    f"receiver billing on {self._billing.url}  refuses {_REFUSALS} times at first"
                )
                await self._set_up(client)
                published = await self._publish(client)
                await self._watch(client, published)
                await self._read_back(client, published)
                await self._show_trace(service, published)
        self._expect(service.exit_code == 0, f"the service stops with 0, not {service.exit_code}")
        return self._conclude()

    async def _set_up(self, client: HooklineClient) -> None:
        _title("Set up, over gRPC")
        created = await client.tenants.CreateTenant(
            CreateTenantRequest(tenant_id=last_part(TENANT), tenant=Tenant(display_name="Acme"))
        )
        _print(created.tenant.name)
        for type_id, schema in _TYPES.items():
            made = await client.event_types.CreateEventType(
                CreateEventTypeRequest(
                    event_type_id=type_id, event_type=EventType(json_schema=schema)
                )
            )
            _print(made.event_type.name)
        await self._subscribe(client, self._crm, list(_TYPES))
        await self._subscribe(client, self._billing, ["order.created"], _RETRY_AFTER_S)

    async def _subscribe(
        self,
        client: HooklineClient,
        receiver: Receiver,
        types: Sequence[str],
        schedule_s: Sequence[float] = (),
    ) -> None:
        request = CreateSubscriptionRequest(tenant=TENANT, subscription_id=receiver.name)
        request.subscription.event_types.extend(types)
        request.subscription.http.url = receiver.url
        request.subscription.propagate_trace = True
        for delay_s in schedule_s:
            delay = request.subscription.retry_policy.schedule.add()
            delay.FromMilliseconds(int(delay_s * 1000))
        created = await client.subscriptions.CreateSubscription(request)
        receiver.verifier = Verifier(created.signing_secret)
        _print(f"{created.subscription.name:<34}  {' and '.join(types)} -> {receiver.url}")

    async def _publish(self, client: HooklineClient) -> dict[str, str]:
        """Publish; the events' names by their type."""
        _title("Publish")
        self._began_at = time.monotonic()
        events = [Event(type=kind, json_data=data) for kind, data in _EVENTS.items()]
        with self._own_spans.spanning("an order is placed") as self._trace_id:
            results = await client.publish(TENANT, events)
        names = {}
        for event, result, expected in zip(events, results, (1, 2), strict=True):
            names[event.type] = result.name
            _print(
                f"{event.type:<16} {last_part(result.name)}  deliveries: {result.delivery_count}"
            )
            self._expect(
                result.delivery_count == expected,
                f"{event.type} makes {expected} deliveries, not {result.delivery_count}",
            )
        return names

    # ------------------------------------------------------------------- webhooks and retries

    def _arrived(self, arrival: Arrival) -> None:
        with receiving(arrival.headers, name=f"webhook at {arrival.receiver}"):
            self._arrivals.put_nowait(arrival)

    async def _watch(self, client: HooklineClient, published: dict[str, str]) -> None:
        """Show what arrives, until every delivery is final and every arrival was shown."""
        _title("Webhooks as they arrive")
        ends_at = time.monotonic() + _PATIENCE_S
        is_over = False
        while not is_over and time.monotonic() < ends_at:
            is_over = await self._all_final(client, published)
            # Deliveries are final only after their last request arrived: no arrival is missed.
            while not self._arrivals.empty():
                await self._show_arrival(client, self._arrivals.get_nowait(), published)
            await asyncio.sleep(_POLL_S)
        self._expect(is_over, f"every delivery is final within {_PATIENCE_S:.0f} s")
        self._check_arrivals(published)

    async def _all_final(self, client: HooklineClient, published: dict[str, str]) -> bool:
        deliveries = [await _deliveries_of(client, name) for name in published.values()]
        return all(
            delivery.state != DELIVERY_STATE_PENDING for some in deliveries for delivery in some
        )

    async def _show_arrival(
        self, client: HooklineClient, arrival: Arrival, published: dict[str, str]
    ) -> None:
        self._seen.append(arrival)
        took_s = arrival.at_s - self._began_at
        verdict = "signature verified" if arrival.webhook else f"NOT VERIFIED: {arrival.fault}"
        _print(
            f"+{took_s:.3f} s  {arrival.receiver:<7} {arrival.event_type:<16}"
            f" {arrival.webhook_id}  {verdict}  -> {arrival.status}"
        )
        self._expect(arrival.webhook is not None, f"each signature verifies: {arrival.fault}")
        self._expect(
            arrival.webhook_id == last_part(published.get(arrival.event_type, "")),
            f"{arrival.receiver} gets {arrival.event_type} under the id that was published",
        )
        if arrival.status >= 300:  # noqa: PLR2004 - what is no success
            await self._show_retry(client, arrival)

    async def _show_retry(self, client: HooklineClient, arrival: Arrival) -> None:
        """Read the refused attempt back, once it is recorded: why, and when the next one is."""
        number = sum(
            (seen.receiver, seen.webhook_id) == (arrival.receiver, arrival.webhook_id)
            for seen in self._seen
        )
        event = f"{TENANT}/events/{arrival.webhook_id}"
        ends_at = time.monotonic() + _PATIENCE_S
        while time.monotonic() < ends_at:
            for delivery in await _deliveries_of(client, event):
                is_same = last_part(delivery.subscription) == arrival.receiver
                if is_same and delivery.attempt_count >= number:
                    self._print_retry(delivery, number)
                    return
            await asyncio.sleep(_POLL_S)
        self._expect(False, f"attempt {number} is recorded")  # noqa: FBT003

    def _print_retry(self, delivery: Delivery, number: int) -> None:
        why = wording_of_attempt(delivery.last_attempt)
        if delivery.HasField("next_attempt_time"):
            self._retries_shown += 1
            due = delivery.next_attempt_time
            _print(f"{'':>10}  attempt {number}: {why}; next one at {time_of(due)}, {until(due)}")
        else:
            _print(f"{'':>10}  attempt {number}: {why}; it was the last one")

    def _check_arrivals(self, published: dict[str, str]) -> None:
        answers = {
            (receiver.name, kind): [
                seen.status
                for seen in self._seen
                if (seen.receiver, seen.event_type) == (receiver.name, kind)
            ]
            for receiver in (self._crm, self._billing)
            for kind in published
        }
        expected = {
            ("crm", "user.registered"): [200],
            ("crm", "order.created"): [200],
            ("billing", "user.registered"): [],
            ("billing", "order.created"): [500] * _REFUSALS + [200],
        }
        for (receiver, kind), wanted in expected.items():
            got = answers[receiver, kind]
            self._expect(got == wanted, f"{receiver} answers {kind} with {wanted}, not {got}")
        self._expect(
            self._retries_shown == _REFUSALS,
            f"{_REFUSALS} retries are read back with their time, not {self._retries_shown}",
        )

    # ----------------------------------------------------------------------------- the end

    async def _read_back(self, client: HooklineClient, published: dict[str, str]) -> None:
        _title("Final states, read back over gRPC")
        for kind, name in published.items():
            for listed in await _deliveries_of(client, name):
                read = await client.deliveries.GetDelivery(GetDeliveryRequest(name=listed.name))
                delivery = read.delivery
                attempts = await client.deliveries.ListAttempts(
                    ListAttemptsRequest(delivery=delivery.name)
                )
                numbers = [attempt.number for attempt in attempts.attempts]
                statuses = [attempt.http_status for attempt in attempts.attempts]
                receiver = last_part(delivery.subscription)
                _print(
                    f"{last_part(delivery.name)}  {kind:<16} -> {receiver:<7} "
                    f"{state_of(delivery)}, answers: {', '.join(map(str, statuses))}"
                )
                wanted = [500] * _REFUSALS + [200] if receiver == "billing" else [200]
                self._expect(
                    delivery.state == DELIVERY_STATE_SUCCEEDED,
                    f"{kind} for {receiver} is SUCCEEDED in the end, not {state_of(delivery)}",
                )
                self._expect(
                    (numbers, statuses) == (list(range(1, len(wanted) + 1)), wanted),
                    f"{kind} for {receiver} has the answers {wanted} in order, not {statuses}",
                )

    async def _show_trace(self, service: DemoService, published: dict[str, str]) -> None:
        """One event's way through all processes; its spans come a moment after they ended."""
        kind = "order.created"
        _title(f"The trace of {kind}, from its caller to its receivers")
        event, wanted = last_part(published[kind]), _REFUSALS + 2
        lines: list[str] = []
        ends_at = time.monotonic() + _TRACE_PATIENCE_S
        while time.monotonic() < ends_at:
            spans = [*self._own_spans.ended(), *service.spans]
            lines = tree_of(spans, self._trace_id, event)
            if sum("webhook at" in line for line in lines) >= wanted:
                break
            await asyncio.sleep(_POLL_S)
        for line in lines:
            _print(line)
        arrived = sum("webhook at" in line for line in lines)
        self._expect(arrived >= wanted, f"the trace shows {wanted} arrivals, not {arrived}")

    def _expect(self, is_met: bool, expectation: str) -> None:  # noqa: FBT001 - a condition
        if not is_met:
            self._unmet.append(expectation)

    def _conclude(self) -> int:
        if not self._unmet:
            print("\nAll of it happened as expected, and nothing is left running.")
            return 0
        print("\nFAILED. It was expected that", flush=True)
        for expectation in dict.fromkeys(self._unmet):
            print(f"  - {expectation}", flush=True)
        return 1


async def _deliveries_of(client: HooklineClient, event: str) -> list[Delivery]:
    listed = await client.deliveries.ListDeliveries(
        ListDeliveriesRequest(tenant=TENANT, event=event)
    )
    return sorted(listed.deliveries, key=lambda delivery: delivery.name)


def _title(text: str) -> None:
    print(f"\n{text}", flush=True)


def _print(text: str) -> None:
    print(f"  {text}", flush=True)
