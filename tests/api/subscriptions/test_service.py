"""SubscriptionService over a real channel: create, list, delete and rotate secrets."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from hookline.v1.policy_pb2 import DeliveryLimits, RetryPolicy
from hookline.v1.subscription_pb2 import (
    PAYLOAD_FORMAT_CLOUDEVENTS,
    PAYLOAD_FORMAT_RAW,
    PAYLOAD_FORMAT_STANDARD,
    SUBSCRIPTION_STATE_ACTIVE,
    Subscription,
)
from hookline.v1.target_pb2 import SIGNATURE_SCHEME_HMAC_SHA256, HttpTarget
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import check_id
from tests.api.control import ORDERS, Control, controlling, orders
from tests.api.refusals import refusal

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url) as control:
        yield control


# ----------------------------------------------------------------------------------------- creating


async def test_a_subscription_shows_its_defaults_and_its_secret_once(control: Control) -> None:
    answer = await control.create()
    made = answer.subscription
    assert made == await control.get()
    assert made.name == ORDERS
    assert UUID(made.uid).version == 7
    assert made.http.timeout == Duration(seconds=15)
    assert made.http.signature_scheme == SIGNATURE_SCHEME_HMAC_SHA256
    assert (made.limits.max_in_flight, made.limits.max_per_second) == (64, 0)
    assert not made.HasField("retry_policy")
    assert made.payload_format == PAYLOAD_FORMAT_STANDARD
    assert (made.state, made.state_reason, made.state_message) == (SUBSCRIPTION_STATE_ACTIVE, 0, "")
    (key,) = made.http.signing_keys
    assert (key.scheme, key.public_key) == (SIGNATURE_SCHEME_HMAC_SHA256, "")
    assert key.create_time == made.create_time == made.update_time
    assert not key.HasField("expire_time")
    assert answer.signing_secret.startswith("whsec_")
    assert len(base64.b64decode(answer.signing_secret.removeprefix("whsec_"))) == 32


async def test_every_given_field_is_stored(control: Control) -> None:
    wanted = Subscription(
        display_name="All of it ☂",
        event_types=["order.created", "user.*", "*", "hookline.delivery.exhausted"],
        http=HttpTarget(
            url="https://example.com/a?b=%20",
            failover_urls=["https://example.org/", "http://93.184.215.14:8080/x"],
            headers={"X-One": "1", "authorization": "Bearer x"},
            timeout=Duration(seconds=1, nanos=500_000_000),
            signature_scheme=SIGNATURE_SCHEME_HMAC_SHA256,
        ),
        retry_policy=RetryPolicy(
            schedule=[Duration(), Duration(nanos=1_000_000), Duration(seconds=604_800)]
        ),
        limits=DeliveryLimits(max_per_second=0.5, max_in_flight=7),
        ordered=True,
        payload_format=PAYLOAD_FORMAT_RAW,
        propagate_trace=True,
        labels={"team": "eu ☂"},
    )
    made = (await control.create(wanted)).subscription
    for field, value in wanted.ListFields():
        if field.name != "http":
            assert getattr(made, field.name) == value, field.name
    del made.http.signing_keys[:]
    assert made.http == wanted.http
    doubling = RetryPolicy(
        max_attempts=3, min_backoff=Duration(nanos=1_000_000), max_backoff=Duration(seconds=9)
    )
    other = orders(retry_policy=doubling, payload_format=PAYLOAD_FORMAT_CLOUDEVENTS)
    made = (await control.create(other, "other")).subscription
    assert made.retry_policy == doubling
    assert made.payload_format == PAYLOAD_FORMAT_CLOUDEVENTS


async def test_output_only_fields_are_ignored(control: Control) -> None:
    await control.create(subscription_id="first")
    await control.pause("tenants/acme/subscriptions/first")
    copy = await control.get("tenants/acme/subscriptions/first")
    made = (await control.create(copy, "second")).subscription
    assert made.name == "tenants/acme/subscriptions/second"
    assert made.uid != copy.uid
    assert made.state == SUBSCRIPTION_STATE_ACTIVE
    assert made.etag != copy.etag


async def test_server_generates_a_missing_id(control: Control) -> None:
    names = [(await control.create(subscription_id="")).subscription.name for _ in range(20)]
    assert len(set(names)) == 20
    for name in names:
        subscription_id = name.removeprefix("tenants/acme/subscriptions/")
        assert subscription_id.startswith("s-")
        assert check_id(subscription_id) is None
        assert (await control.get(name)).name == name


async def test_subscription_can_be_created_with_an_existing_secret(control: Control) -> None:
    assert (await control.create(signing_secret=SECRET)).signing_secret == SECRET


async def test_only_the_creation_returns_the_secret(control: Control) -> None:
    first = (await control.create()).signing_secret
    second = (await control.rotate()).signing_secret
    answers = [
        await control.get(),
        await control.page(),
        await control.update(orders(display_name="x")),
        await control.pause(),
        await control.resume(),
    ]
    for answer in answers:
        raw = answer.SerializeToString()
        for secret in (first, second):
            assert secret.removeprefix("whsec_").encode() not in raw
            assert base64.b64decode(secret.removeprefix("whsec_")) not in raw


async def test_concurrent_creations_with_one_id_create_one_subscription(control: Control) -> None:
    answers = await asyncio.gather(*[control.create() for _ in range(6)], return_exceptions=True)
    codes = [answer.code() for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert codes == [grpc.StatusCode.ALREADY_EXISTS] * 5
    assert (await refusal(control.create())).reason == "SUBSCRIPTION_ALREADY_EXISTS"


async def test_creation_beyond_the_quota_is_refused_with_the_setting(database_url: str) -> None:
    async with controlling(database_url, limits=Limits(max_subscriptions_per_tenant=2)) as control:
        await control.create(subscription_id="one")
        await control.create(subscription_id="two")
        refused = await refusal(control.create(subscription_id="three"))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED",
    )
    assert refused.quota == ["HOOKLINE_MAX_SUBSCRIPTIONS_PER_TENANT"]
    assert refused.metadata["maximum"] == "2"


async def test_next_publish_matches_a_new_subscription(control: Control) -> None:
    assert (await control.publish()).delivery_count == 0
    await control.create()
    assert (await control.publish()).delivery_count == 1
    await control.update(orders(event_types=["user.*"]), ["event_types"])
    assert (await control.publish()).delivery_count == 0
    await control.update(orders(event_types=["*"]), ["event_types"])
    assert (await control.publish()).delivery_count == 1
    await control.delete()
    assert (await control.publish()).delivery_count == 0


# ---------------------------------------------------------------------------------- listing, ending


async def test_pages_are_newest_first_and_bound_to_their_list(control: Control) -> None:
    for n in range(5):
        await control.create(subscription_id=f"s{n}")
    first = await control.page(page_size=3)
    last = await control.page(page_size=3, page_token=first.next_page_token)
    names = [one.name.rpartition("/")[2] for one in (*first.subscriptions, *last.subscriptions)]
    assert names == ["s4", "s3", "s2", "s1", "s0"]
    assert last.next_page_token == ""
    across = await control.page(tenant="tenants/-", page_size=10)
    assert list(across.subscriptions) == [*first.subscriptions, *last.subscriptions]
    foreign = await refusal(
        control.page(tenant="tenants/-", page_token=first.next_page_token, page_size=3)
    )
    assert foreign.violations == {"page_token": "PAGE_TOKEN_INVALID"}


async def test_page_is_limited_in_bytes_and_the_next_continues(database_url: str) -> None:
    async with controlling(database_url, limits=Limits(max_page_bytes=2_000)) as control:
        for n in range(5):
            await control.create(orders(display_name="n" * 256), f"s{n}")
        names: list[str] = []
        token, pages = "", 0
        while token or not pages:
            answer = await control.page(page_token=token)
            names += [one.name.rpartition("/")[2] for one in answer.subscriptions]
            token, pages = answer.next_page_token, pages + 1
    assert names == ["s4", "s3", "s2", "s1", "s0"]
    assert 1 < pages < 5


async def test_deleted_subscription_is_not_found_and_its_id_can_be_reused(control: Control) -> None:
    before = (await control.create(orders(labels={"a": "1"}))).subscription
    await control.delete()
    assert (await refusal(control.get())).reason == "SUBSCRIPTION_NOT_FOUND"
    assert list((await control.page()).subscriptions) == []
    after = (await control.create()).subscription
    assert after.uid != before.uid
    assert not after.labels


# ----------------------------------------------------------------------------------------- rotating


async def test_both_secrets_are_valid_until_the_overlap_ends(control: Control) -> None:
    first = await control.create()
    answer = await control.rotate()
    assert answer.signing_secret != first.signing_secret
    current, previous = (await control.get()).http.signing_keys
    assert not current.HasField("expire_time")
    assert previous.expire_time == answer.previous_expire_time
    overlap = previous.expire_time.ToDatetime() - current.create_time.ToDatetime()
    assert overlap == timedelta(hours=24)
    third = await control.rotate(overlap=Duration(seconds=60), signing_secret=SECRET)
    assert third.signing_secret == SECRET
    assert len((await control.get()).http.signing_keys) == 2
    await control.rotate(overlap=Duration())
    assert len((await control.get()).http.signing_keys) == 1


async def test_importing_the_same_secret_is_idempotent(control: Control) -> None:
    await control.create()
    answer = await control.rotate(signing_secret=SECRET)
    assert await control.rotate(signing_secret=SECRET) == answer
