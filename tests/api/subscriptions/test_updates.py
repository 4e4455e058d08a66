"""UpdateSubscription over a real channel: update masks, etags and concurrent changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from hookline.v1.policy_pb2 import DeliveryLimits, RetryPolicy
from hookline.v1.subscription_pb2 import (
    PAYLOAD_FORMAT_RAW,
    Subscription,
)
from hookline.v1.target_pb2 import HttpTarget
from tests.api.control import URL, Control, controlling, orders
from tests.api.refusals import refusal


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url) as control:
        yield control


async def test_changed_copy_of_a_read_subscription_is_accepted(control: Control) -> None:
    policy = RetryPolicy(schedule=[Duration(), Duration(seconds=3)])
    made = (await control.create(orders(labels={"a": "1"}, retry_policy=policy))).subscription
    sent = Subscription()
    sent.CopyFrom(made)
    sent.display_name = "new"
    changed = await control.update(sent)
    sent.etag, sent.update_time.seconds, sent.update_time.nanos = (
        changed.etag,
        changed.update_time.seconds,
        changed.update_time.nanos,
    )
    assert changed == sent
    assert changed.etag != made.etag


async def test_an_equal_update_changes_nothing(control: Control) -> None:
    made = (await control.create()).subscription
    assert await control.update(orders()) == made
    assert await control.update(made) == made
    assert await control.update(Subscription()) == made


RICH = {
    "display_name": "old",
    "http": HttpTarget(
        url=URL,
        failover_urls=["https://example.org/"],
        headers={"x-one": "1"},
        timeout=Duration(seconds=3),
    ),
    "retry_policy": RetryPolicy(max_attempts=3, min_backoff=Duration(seconds=1)),
    "limits": DeliveryLimits(max_per_second=5, max_in_flight=6),
    "payload_format": PAYLOAD_FORMAT_RAW,
    "labels": {"a": "1"},
}


def flat(subscription: Subscription) -> dict[str, str]:
    """Return the changeable fields by path, as text."""
    found: dict[str, str] = {}
    for field, value in subscription.ListFields():
        if field.name in {"http", "retry_policy", "limits"}:
            for inner, part in value.ListFields():
                found[f"{field.name}.{inner.name}"] = str(part)
        else:
            found[field.name] = str(value)
    output = {"name", "uid", "state", "create_time", "update_time", "etag", "http.signing_keys"}
    return {path: text for path, text in found.items() if path not in output}


NEW_URL = HttpTarget(url="https://example.net/new")


@pytest.mark.parametrize(
    "new,paths,changed",
    [
        ({"http": NEW_URL}, [], {"http.url"}),
        ({"http": NEW_URL}, ["http.url"], {"http.url"}),
        (
            {"http": NEW_URL},
            ["http"],
            {"http.url", "http.failover_urls", "http.headers", "http.timeout"},
        ),
        ({"http": NEW_URL}, ["http.failoverUrls"], {"http.failover_urls"}),
        ({}, ["http.timeout"], {"http.timeout"}),
        ({}, ["http.headers", "labels"], {"http.headers", "labels"}),
        ({"display_name": "new"}, ["labels"], {"labels"}),
        ({"display_name": "new"}, ["displayName"], {"display_name"}),
        ({}, ["display_name"], {"display_name"}),
        ({}, ["payloadFormat"], {"payload_format"}),
        ({}, ["limits"], {"limits.max_per_second", "limits.max_in_flight"}),
        ({"limits": DeliveryLimits(max_in_flight=9)}, [], {"limits.max_in_flight"}),
        ({}, ["limits.maxPerSecond"], {"limits.max_per_second"}),
        ({}, ["retry_policy"], {"retry_policy.max_attempts", "retry_policy.min_backoff"}),
        ({}, ["retryPolicy.minBackoff"], {"retry_policy.min_backoff"}),
        (
            {"retry_policy": RetryPolicy(schedule=[Duration(seconds=1)])},
            [],
            {"retry_policy.max_attempts", "retry_policy.min_backoff", "retry_policy.schedule"},
        ),
        ({"event_types": ["a", "b"]}, [], {"event_types"}),
        ({"labels": {"b": "2"}}, [], {"labels"}),
        (
            {"event_types": ["a"], "http": NEW_URL},
            ["*"],
            {
                "display_name", "event_types", "http.url", "http.failover_urls", "http.headers",
                "http.timeout", "retry_policy.max_attempts", "retry_policy.min_backoff",
                "limits.max_per_second", "limits.max_in_flight", "payload_format", "labels",
            },
        ),
    ],
)  # fmt: skip
async def test_update_changes_only_fields_of_its_mask(
    control: Control, new: dict[str, Any], paths: list[str], changed: set[str]
) -> None:
    before = flat((await control.create(orders(**RICH))).subscription)
    after = flat(await control.update(Subscription(**new), paths))
    assert {path for path in before | after if before.get(path) != after.get(path)} == changed
    assert after == flat(await control.get())


async def test_update_validates_only_the_fields_it_changes(database_url: str) -> None:
    """Validation that became stricter later does not block changes of other fields."""
    async with controlling(database_url) as lax:
        await lax.create(orders(http=HttpTarget(url="http://127.0.0.1:1024/")))
    async with controlling(database_url, https_only=True, allow=()) as strict:
        changed = await strict.update(Subscription(display_name="new"))
        assert changed.http.url == "http://127.0.0.1:1024/"
        refused = await refusal(strict.update(orders(http=changed.http), ["http.url"]))
        assert refused.violations.keys() == {"subscription.http.url"}


async def test_partial_retry_policy_is_validated_with_the_fields_it_keeps(control: Control) -> None:
    await control.create(orders(retry_policy=RetryPolicy(min_backoff=Duration(seconds=9))))
    for policy, path, field in [
        (RetryPolicy(max_backoff=Duration(seconds=8)), "max_backoff", "max_backoff"),
        (RetryPolicy(schedule=[Duration()]), "schedule", "schedule"),
    ]:
        refused = await refusal(
            control.update(Subscription(retry_policy=policy), [f"retry_policy.{path}"])
        )
        assert refused.violations == {f"subscription.retry_policy.{field}": "FIELD_INVALID"}
    longer = Subscription(retry_policy=RetryPolicy(max_backoff=Duration(seconds=10)))
    await control.update(longer, ["retry_policy.max_backoff"])
    wider = Subscription(retry_policy=RetryPolicy(min_backoff=Duration(seconds=11)))
    refused = await refusal(control.update(wider, ["retry_policy.min_backoff"]))
    assert refused.violations == {"subscription.retry_policy.min_backoff": "FIELD_INVALID"}


async def test_a_stale_etag_is_rejected_and_a_current_one_accepted(control: Control) -> None:
    made = (await control.create()).subscription
    changed = await control.update(Subscription(display_name="1"), etag=made.etag)
    for call in (
        control.update(Subscription(display_name="2"), etag=made.etag),
        control.update(Subscription(display_name="2", etag=made.etag)),
        control.delete(etag=made.etag),
        control.delete(etag="nonsense"),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    differing = await refusal(
        control.update(Subscription(display_name="2", etag=changed.etag), etag=made.etag)
    )
    assert differing.violations == {"etag": "FIELD_INVALID"}
    await control.delete(etag=changed.etag)


async def test_concurrent_updates_of_different_fields_are_all_stored(control: Control) -> None:
    await control.create()
    await asyncio.gather(
        control.update(Subscription(display_name="new")),
        control.update(Subscription(labels={"a": "1"})),
        control.update(Subscription(event_types=["x"])),
        control.update(Subscription(http=HttpTarget(headers={"x-a": "1"}))),
    )
    seen = await control.get()
    assert (seen.display_name, dict(seen.labels)) == ("new", {"a": "1"})
    assert (list(seen.event_types), dict(seen.http.headers)) == (["x"], {"x-a": "1"})


@pytest.mark.parametrize("before", [True, False])
async def test_ordered_is_immutable(control: Control, before: bool) -> None:  # noqa: FBT001
    made = (await control.create(orders(ordered=before))).subscription
    assert made.ordered is before

    for mask in (["ordered"], ["*"]):
        found = await refusal(control.update(orders(ordered=not before), mask))
        assert found.code == grpc.StatusCode.INVALID_ARGUMENT
        assert found.violations == {"subscription.ordered": "FIELD_IMMUTABLE"}

    kept = await control.update(orders(ordered=before, labels={"a": "1"}), ["*"])
    assert (kept.ordered, dict(kept.labels)) == (before, {"a": "1"})
    assert await control.get() == kept
    renamed = await control.update(Subscription(display_name="new"))
    assert (renamed.ordered, renamed.display_name) == (before, "new")
