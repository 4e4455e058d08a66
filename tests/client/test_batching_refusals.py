"""`client.batching` with rejected events: each fails alone, and the others are stored."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from hookline import HooklineClient
from hookline.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    HooklineError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishEventsRequest
from tests.client.service import Answer, Context, Service, info, refuse

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def numbered(number: int, kind: str = "good") -> Event:
    return Event(type=kind, subject=str(number))


def subjects(request: PublishEventsRequest) -> list[int]:
    return [int(event.subject) for event in request.events]


def guilty(request: PublishEventsRequest, kind: str = "bad") -> list[int]:
    return [place for place, event in enumerate(request.events) if event.type == kind]


async def outcomes_of(
    client: HooklineClient,
    kinds: str,
    **bounds: Any,  # noqa: ANN401
) -> list[Any]:
    """Publish an event a letter, `b` for a bad one, in one batch; what became of each."""
    async with client.batching(
        "acme", max_events=len(kinds), max_delay_ms=60_000, **bounds
    ) as publisher:
        return await asyncio.gather(
            *[
                publisher.publish(numbered(n, "bad" if kind == "b" else "good"))
                for n, kind in enumerate(kinds)
            ],
            return_exceptions=True,
        )


def naming_fields(request: PublishEventsRequest) -> Answer | None:
    """As the service does: every wrong field at once."""
    faults = error_details_pb2.BadRequest()
    for place in guilty(request):
        for name in ("type", "source"):
            faults.field_violations.add(
                field=f"events[{place}].{name}",
                description=f"{name} is bad",
                reason="FIELD_INVALID",
            )
    return refuse(INVALID, info("FIELD_INVALID"), faults) if guilty(request) else None


async def test_events_named_by_violations_fail_and_the_others_are_sent_again(
    service: Service, client: HooklineClient
) -> None:
    service.events.rule = naming_fields
    outcomes = await outcomes_of(client, "gbggbg")

    first, second = service.events.requests
    assert (subjects(first), subjects(second)) == ([0, 1, 2, 3, 4, 5], [0, 2, 3, 5])
    assert list(second.events) == [first.events[place] for place in (0, 2, 3, 5)], "same keys"
    for place in (1, 4):
        error = outcomes[place]
        assert type(error) is InvalidArgumentError
        assert error.reason == "FIELD_INVALID"
        assert [(fault.field, fault.description) for fault in error.violations] == [
            ("events[0].type", "type is bad"), ("events[0].source", "source is bad"),
        ]  # fmt: skip
        assert error.message == str(error.args[0]) == "events[0].type: type is bad (and 1 more)"
        assert isinstance(error.__cause__, grpc.aio.AioRpcError)
    names = [outcomes[place].name for place in (0, 2, 3, 5)]
    assert names == [f"tenants/acme/events/evt_{n}" for n in range(4)]


@pytest.mark.parametrize(
    "code, reason, kind",
    [
        (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED", AlreadyExistsError),
        (grpc.StatusCode.FAILED_PRECONDITION, "EVENT_TYPE_ARCHIVED", FailedPreconditionError),
    ],
)
async def test_an_event_named_by_its_index_fails(
    service: Service,
    client: HooklineClient,
    code: grpc.StatusCode,
    reason: str,
    kind: type[HooklineError],
) -> None:
    def rule(request: PublishEventsRequest) -> Answer | None:
        for place in guilty(request):
            details = info(reason, index=str(place), name="tenants/acme/events/evt_first")
            return refuse(code, details, text=f"events[{place}].idempotency_key: it is taken")
        return None

    service.events.rule = rule
    outcomes = await outcomes_of(client, "gbgb")
    assert [subjects(request) for request in service.events.requests] == [
        [0, 1, 2, 3], [0, 2, 3], [0, 2],
    ]  # fmt: skip
    for place in (1, 3):
        error = outcomes[place]
        assert type(error) is kind
        assert (error.reason, error.metadata) == (
            reason, {"index": "0", "name": "tenants/acme/events/evt_first"},
        )  # fmt: skip
        assert error.message == "events[0].idempotency_key: it is taken"
    assert all(outcomes[place].name for place in (0, 2))


async def test_an_event_named_by_its_field_fails(service: Service, client: HooklineClient) -> None:
    def rule(request: PublishEventsRequest) -> Answer | None:
        for place in guilty(request):
            details = info("NOT_IMPLEMENTED", field=f"events[{place}].proto_data")
            return refuse(grpc.StatusCode.UNIMPLEMENTED, details)
        return None

    service.events.rule = rule
    outcomes = await outcomes_of(client, "ggb")
    assert type(outcomes[2]) is UnimplementedError
    assert outcomes[2].metadata == {"field": "events[0].proto_data"}
    assert [subjects(request) for request in service.events.requests] == [[0, 1, 2], [0, 1]]


@pytest.mark.parametrize(
    "answer",
    [
        refuse(INVALID, info("PAYLOAD_INVALID")),
        refuse(grpc.StatusCode.INTERNAL, info("INTERNAL")),
        refuse(grpc.StatusCode.UNKNOWN),
        refuse(INVALID, info("FIELD_INVALID", index="99")),
    ],
    ids=["invalid", "internal", "unknown", "nonsense"],
)
async def test_an_error_that_names_no_event_is_bisected(
    service: Service, client: HooklineClient, answer: Answer
) -> None:
    stored: list[int] = []

    def rule(request: PublishEventsRequest) -> Answer | None:
        if guilty(request):
            return answer
        stored.extend(subjects(request))
        return None

    service.events.rule = rule
    outcomes = await outcomes_of(client, "gggggbgggg")
    assert isinstance(outcomes.pop(5), HooklineError)
    assert all(outcome.name for outcome in outcomes)
    assert stored == [0, 1, 2, 3, 4, 6, 7, 8, 9]


async def test_a_batch_that_exceeds_the_message_size_is_halved(
    service: Service, client: HooklineClient
) -> None:
    """Its operator's limits may be lower than ours; gRPC's own bound comes without a reason."""
    faults = error_details_pb2.BadRequest()
    faults.field_violations.add(field="events", description="too many", reason="LIMIT_EXCEEDED")

    def rule(request: PublishEventsRequest) -> Answer | None:
        if len(request.events) > 4:
            return refuse(grpc.StatusCode.RESOURCE_EXHAUSTED)
        if len(request.events) > 2:
            return refuse(INVALID, info("LIMIT_EXCEEDED"), faults)
        return None

    service.events.rule = rule
    outcomes = await outcomes_of(client, "gggggggg")
    assert all(outcome.name for outcome in outcomes)
    stored = [subjects(r) for r in service.events.requests if len(r.events) <= 2]
    assert stored == [[0, 1], [2, 3], [4, 5], [6, 7]]


TENANT_FAULT = error_details_pb2.BadRequest()
TENANT_FAULT.field_violations.add(field="tenant", description="must be `tenants/ID`", reason="X")


@pytest.mark.parametrize(
    "answer, kind",
    [
        (refuse(grpc.StatusCode.NOT_FOUND, info("TENANT_NOT_FOUND")), NotFoundError),
        (refuse(grpc.StatusCode.PERMISSION_DENIED), PermissionDeniedError),
        (refuse(INVALID, info("FIELD_INVALID"), TENANT_FAULT), InvalidArgumentError),
        (
            refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, info("QUOTA_EXCEEDED")),
            ResourceExhaustedError,
        ),
        (refuse(grpc.StatusCode.UNAVAILABLE, pushback="-1"), UnavailableError),
    ],
    ids=["tenant", "permission", "tenant's name", "quota", "forbidden"],
)
async def test_an_error_of_the_whole_batch_fails_all_events_without_repetition(
    service: Service, client: HooklineClient, answer: Answer, kind: type[HooklineError]
) -> None:
    service.events.script = [answer]
    outcomes = await outcomes_of(client, "gggg")
    assert [type(outcome) for outcome in outcomes] == [kind] * 4
    assert len({id(outcome) for outcome in outcomes}) == 4, "each its own"
    assert len(service.events.requests) == 1


async def test_overload_is_repeated_after_the_retry_delay(
    service: Service, client: HooklineClient
) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(200)
    service.events.script = [refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, info("OVERLOADED"), retry)]
    outcomes = await outcomes_of(client, "ggg")
    assert all(outcome.name for outcome in outcomes)
    assert service.events.times[1] - service.events.times[0] >= 0.19


class Unreliable:
    """Stores by key, refuses bad events, and loses requests and answers at random."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.stored: dict[str, int] = {}

    def rule(self, request: PublishEventsRequest) -> Answer | None:
        chance = self._random.random()
        if chance < 0.2:
            return refuse(grpc.StatusCode.UNAVAILABLE, pushback="1")
        answer = naming_fields(request)
        if answer is None and guilty(request, "worse"):
            answer = refuse(grpc.StatusCode.INTERNAL, info("INTERNAL"))
        if answer is None:
            for event in request.events:
                self.stored.setdefault(event.idempotency_key, int(event.subject))
            if chance > 0.8:
                return self._lost
        return answer

    async def _lost(self, context: Context) -> None:
        codes = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        await refuse(self._random.choice(codes), pushback="1")(context)


@pytest.mark.parametrize("seed", range(5))
async def test_valid_events_are_stored_once_and_in_order_despite_errors(
    service: Service, client: HooklineClient, seed: int
) -> None:
    random, unreliable = Random(seed), Unreliable(seed)
    service.events.rule = unreliable.rule
    kinds = random.choices(["good", "bad", "worse"], weights=[90, 7, 3], k=300)
    async with client.batching(
        "acme", max_events=16, max_delay_ms=1, max_pending_events=40
    ) as publisher:
        outcomes = await asyncio.gather(
            *[publisher.publish(numbered(n, kind)) for n, kind in enumerate(kinds)],
            return_exceptions=True,
        )
        assert publisher.pending_events == publisher.pending_bytes == 0
    results = Counter(
        (kind, type(outcome).__name__) for kind, outcome in zip(kinds, outcomes, strict=True)
    )
    counts = Counter(kinds)
    assert results == {
        ("good", "PublishResult"): counts["good"],
        ("bad", "InvalidArgumentError"): counts["bad"],
        ("worse", "HooklineError"): counts["worse"],
    }
    good = [n for n, kind in enumerate(kinds) if kind == "good"]
    assert list(unreliable.stored.values()) == good
