"""Refused subscriptions: all invalid fields are reported at once, each with path and reason."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from hookline.v1.policy_pb2 import DeliveryLimits, RetryPolicy
from hookline.v1.subscription_pb2 import Subscription
from hookline.v1.subscription_service_pb2 import (
    CreateSubscriptionRequest,
    ListSubscriptionsRequest,
    ResumeSubscriptionRequest,
    RotateSigningSecretRequest,
    SendTestEventRequest,
)
from hookline.v1.target_pb2 import HttpTarget, PullTarget
from hookline_service.domain.limits import Limits
from tests.api.control import INVALID, ORDERS, Control, controlling, http, orders, refused_both_ways
from tests.api.refusals import refusal

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url, allow=()) as control:
        await control.create()
        yield control


BAD_PATTERNS = [
    "", ".", "order.", ".order", "order..created", "order.*.created", "*.created", "order*", "**",
    "order.**", "order created", "order/created", "ordér", "order\x00", "order\n", "a" * 129,
    "order.>", "order.#",
]  # fmt: skip


async def test_pattern_outside_the_grammar_is_refused(control: Control) -> None:
    answers = {}
    for pattern in BAD_PATTERNS:
        found = await refused_both_ways(control, event_types=["order.created", pattern])
        answers[pattern] = found.violations
    expected = {"subscription.event_types[1]": "FIELD_INVALID"}
    assert answers == dict.fromkeys(BAD_PATTERNS, expected)


async def test_no_patterns_or_too_many_are_refused(database_url: str) -> None:
    async with controlling(database_url, limits=Limits(max_patterns=3)) as control:
        found = await refusal(control.create(orders(event_types=[])))
        assert found.violations == {"subscription.event_types": "FIELD_REQUIRED"}
        found = await refusal(control.create(orders(event_types=["a", "b", "c", "d"])))
        assert found.violations == {"subscription.event_types": "LIMIT_EXCEEDED"}
        assert found.metadata == {"limit": "HOOKLINE_MAX_PATTERNS", "maximum": "3"}


SECOND = Duration(seconds=1)
BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "timeout 0": ({"http": http(timeout=Duration())}, "http.timeout"),
    "timeout short": ({"http": http(timeout=Duration(nanos=999_999_999))}, "http.timeout"),
    "timeout long": ({"http": http(timeout=Duration(seconds=30, nanos=1))}, "http.timeout"),
    "timeout negative": ({"http": http(timeout=Duration(seconds=-5))}, "http.timeout"),
    "timeout torn": ({"http": http(timeout=Duration(seconds=5, nanos=-1))}, "http.timeout"),
    "timeout overflown": ({"http": http(timeout=Duration(nanos=2_000_000_000))}, "http.timeout"),
    "scheme unknown": ({"http": http(signature_scheme=7)}, "http.signature_scheme"),
    "scheme negative": ({"http": http(signature_scheme=-1)}, "http.signature_scheme"),
    "format unknown": ({"payload_format": 99}, "payload_format"),
    "attempts negative": (
        {"retry_policy": RetryPolicy(max_attempts=-1)},
        "retry_policy.max_attempts",
    ),
    "attempts many": ({"retry_policy": RetryPolicy(max_attempts=101)}, "retry_policy.max_attempts"),
    "least 0": ({"retry_policy": RetryPolicy(min_backoff=Duration())}, "retry_policy.min_backoff"),
    "least negative": (
        {"retry_policy": RetryPolicy(min_backoff=Duration(seconds=-1))},
        "retry_policy.min_backoff",
    ),
    "least long": (
        {"retry_policy": RetryPolicy(min_backoff=Duration(seconds=86_401))},
        "retry_policy.min_backoff",
    ),
    "most 0": ({"retry_policy": RetryPolicy(max_backoff=Duration())}, "retry_policy.max_backoff"),
    "most below least": (
        {"retry_policy": RetryPolicy(min_backoff=Duration(seconds=2), max_backoff=SECOND)},
        "retry_policy.max_backoff",
    ),
    "most long": (
        {"retry_policy": RetryPolicy(max_backoff=Duration(seconds=604_801))},
        "retry_policy.max_backoff",
    ),
    "schedule beside attempts": (
        {"retry_policy": RetryPolicy(schedule=[SECOND], max_attempts=1)},
        "retry_policy.schedule",
    ),
    "schedule beside least": (
        {"retry_policy": RetryPolicy(schedule=[SECOND], min_backoff=SECOND)},
        "retry_policy.schedule",
    ),
    "schedule beside most": (
        {"retry_policy": RetryPolicy(schedule=[SECOND], max_backoff=SECOND)},
        "retry_policy.schedule",
    ),
    "schedule negative": (
        {"retry_policy": RetryPolicy(schedule=[SECOND, Duration(seconds=-1)])},
        "retry_policy.schedule[1]",
    ),
    "schedule far": (
        {"retry_policy": RetryPolicy(schedule=[Duration(seconds=604_801)])},
        "retry_policy.schedule[0]",
    ),
    "rate negative": ({"limits": DeliveryLimits(max_per_second=-1)}, "limits.max_per_second"),
    "rate tiny": ({"limits": DeliveryLimits(max_per_second=0.0009)}, "limits.max_per_second"),
    "rate huge": ({"limits": DeliveryLimits(max_per_second=100_001)}, "limits.max_per_second"),
    "rate NaN": ({"limits": DeliveryLimits(max_per_second=math.nan)}, "limits.max_per_second"),
    "rate infinite": ({"limits": DeliveryLimits(max_per_second=math.inf)}, "limits.max_per_second"),
    "width negative": ({"limits": DeliveryLimits(max_in_flight=-1)}, "limits.max_in_flight"),
    "width huge": ({"limits": DeliveryLimits(max_in_flight=1_001)}, "limits.max_in_flight"),
    "name with NUL": ({"display_name": "a\x00"}, "display_name"),
    "label key": ({"labels": {"A": ""}}, "labels['A']"),
    "label value with NUL": ({"labels": {"a": "\x00"}}, "labels['a']"),
}


async def test_field_outside_its_bounds_is_refused(control: Control) -> None:
    answers = {
        kind: (await refused_both_ways(control, **fields)).violations
        for kind, (fields, _) in BAD_FIELDS.items()
    }
    assert answers == {
        kind: {f"subscription.{path}": "FIELD_INVALID"} for kind, (_, path) in BAD_FIELDS.items()
    }


@pytest.mark.parametrize(
    "fields,path",
    [
        ({"display_name": "n" * 257}, "display_name"),
        ({"labels": {"a": "v" * 257}}, "labels['a']"),
        ({"labels": {f"l{n}": "" for n in range(65)}}, "labels"),
        ({"retry_policy": RetryPolicy(schedule=[SECOND] * 101)}, "retry_policy.schedule"),
    ],
)
async def test_oversized_field_is_refused(
    control: Control, fields: dict[str, Any], path: str
) -> None:
    found = await refused_both_ways(control, **fields)
    assert found.violations == {f"subscription.{path}": "LIMIT_EXCEEDED"}


BAD_SECRETS = [
    "whsec_", "whsec_tooshort", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_MfKQ9r8GKYqr!!!",
    "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=", "whsec_" + "A" * 87 + "B",
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==",
    SECRET + "\n", " " + SECRET, "whsec_\x00", "WHSEC_" + SECRET[6:],
]  # fmt: skip


async def test_a_secret_that_cannot_sign_is_refused_and_not_repeated(control: Control) -> None:
    for secret in BAD_SECRETS:
        rotation = RotateSigningSecretRequest(name=ORDERS, signing_secret=secret)
        for call in (
            control.create(subscription_id="new", signing_secret=secret),
            control.subscriptions.RotateSigningSecret(rotation),
        ):
            found = await refusal(call)
            assert (found.code, found.reason) == (INVALID, "SIGNING_SECRET_INVALID"), secret
            assert found.violations == {"signing_secret": "SIGNING_SECRET_INVALID"}, secret
            assert len(secret) < 12 or secret[6:].strip() not in f"{found}"


@pytest.mark.parametrize("overlap_s", [-1, 2_592_001])
async def test_secret_overlap_out_of_bounds_is_refused(control: Control, overlap_s: int) -> None:
    found = await refusal(
        control.subscriptions.RotateSigningSecret(
            RotateSigningSecretRequest(name=ORDERS, overlap=Duration(seconds=overlap_s))
        )
    )
    assert found.violations == {"overlap": "FIELD_INVALID"}
    assert found.descriptions == ["must be between 0s and 2592000s"]


@pytest.mark.parametrize("seconds,nanos", [(32_503_680_000, 0), (1, -1), (-62_135_596_801, 0)])
async def test_invalid_or_future_discard_time_is_refused(
    control: Control, seconds: int, nanos: int
) -> None:
    moment = Timestamp(seconds=seconds, nanos=nanos)
    found = await refusal(
        control.subscriptions.ResumeSubscription(
            ResumeSubscriptionRequest(name=ORDERS, discard_before=moment)
        )
    )
    assert found.violations == {"discard_before": "FIELD_INVALID"}


async def test_all_violations_are_reported_together(control: Control) -> None:
    found = await refusal(
        control.subscriptions.CreateSubscription(
            CreateSubscriptionRequest(
                tenant="acme",
                subscription_id="Orders",
                signing_secret="x",
                subscription=Subscription(
                    event_types=["a..b"],
                    http=HttpTarget(
                        url="http://127.0.0.1/", headers={"host": "x"}, timeout=Duration()
                    ),
                    limits=DeliveryLimits(max_in_flight=-1),
                ),
            )
        )
    )
    assert found.reason == "FIELD_INVALID"
    assert found.violations == {
        "tenant": "FIELD_INVALID",
        "subscription_id": "FIELD_INVALID",
        "signing_secret": "SIGNING_SECRET_INVALID",
        "subscription.event_types[0]": "FIELD_INVALID",
        "subscription.http.url": "TARGET_ADDRESS_FORBIDDEN",
        "subscription.http.headers['host']": "HEADER_INVALID",
        "subscription.http.timeout": "FIELD_INVALID",
        "subscription.limits.max_in_flight": "FIELD_INVALID",
    }


async def test_missing_fields_are_reported_as_required(control: Control) -> None:
    request = CreateSubscriptionRequest()
    found = await refusal(control.subscriptions.CreateSubscription(request))
    assert found.violations == {
        "tenant": "FIELD_REQUIRED",
        "subscription.event_types": "FIELD_REQUIRED",
        "subscription.http.url": "FIELD_REQUIRED",
    }
    test = SendTestEventRequest()
    found = await refusal(control.subscriptions.SendTestEvent(test))
    assert found.violations == {"name": "FIELD_REQUIRED", "event": "FIELD_REQUIRED"}


# ---------------------------------------------------------------------------------------- not built

UNBUILT: dict[str, dict[str, Any]] = {
    "filter": {"filter": "data.amount > 100"},
}


@pytest.mark.parametrize("path", UNBUILT)
async def test_fields_of_later_versions_are_refused_and_not_ignored(
    control: Control, path: str
) -> None:
    unbuilt = orders(**UNBUILT[path])
    creating = await refusal(control.create(unbuilt, "new"))
    calls = [
        control.update(unbuilt),
        control.update(unbuilt, ["*"]),
        control.update(unbuilt, [path]),
    ]
    for found in [creating, *[await refusal(call) for call in calls]]:
        assert (found.code, found.reason) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "NOT_IMPLEMENTED",
        )
        assert found.metadata == {"field": f"subscription.{path}"}
    assert (await control.update(unbuilt, ["display_name"])).name == ORDERS


async def test_pull_targets_and_list_filters_are_unimplemented(control: Control) -> None:
    listing = control.subscriptions.ListSubscriptions(
        ListSubscriptionsRequest(tenant="tenants/acme", filter='state == "ACTIVE"')
    )
    pull = Subscription(event_types=["a"], pull=PullTarget())
    calls: list[tuple[Awaitable[object], str]] = [
        (control.create(pull, "new"), "subscription.pull"),
        (listing, "filter"),
    ]
    for call, field in calls:
        found = await refusal(call)
        assert found.code == grpc.StatusCode.UNIMPLEMENTED
        assert found.metadata == {"field": field}
