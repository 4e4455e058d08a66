"""Messages with millions of entries are refused or read without delay.

One event loop serves all callers: while it reads one client's list, no other call is answered and
no lease is renewed.
"""

from __future__ import annotations

import gc
import time
from typing import Any, TypeVar
from unittest.mock import sentinel
from uuid import UUID

import orjson
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from hookline.v1.delivery_service_pb2 import ListDeliveriesRequest
from hookline.v1.event_pb2 import Event
from hookline.v1.policy_pb2 import RetryPolicy
from hookline.v1.subscription_pb2 import Subscription
from hookline.v1.target_pb2 import HttpTarget
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.conversion.update_mask import leaves_in
from hookline_service.api.deliveries.service import DeliveryServicer
from hookline_service.api.events.conversion import EventReader
from hookline_service.api.subscriptions.conversion import LEAVES, SubscriptionReader
from hookline_service.api.subscriptions.policies import policy_in
from hookline_service.api.subscriptions.target_secrets import RequestedSecrets
from hookline_service.domain.errors import InvalidArgumentError, Reason, Violation
from hookline_service.domain.limits import Limits
from hookline_service.domain.subscription import HttpTarget as Target
from hookline_service.domain.subscription import RetryPolicy as Policy
from hookline_service.domain.subscription import Subscription as Seen
from hookline_service.targets.http.egress import EgressPolicy

MANY = 2_500_000
CPU_S_MAX = 0.5
"""Reading them one by one takes many times as much."""

M = TypeVar("M", bound=Message)


def with_many(kind: type[M], field: str, entry: bytes) -> M:
    """A message with MANY times this entry, of less than 64 bytes, in a repeated field."""
    number = kind.DESCRIPTOR.fields_by_name[field].number
    return kind.FromString(bytes([number << 3 | 2, len(entry), *entry]) * MANY)


def refused(field: str, violations: list[Violation], began_s: float) -> None:
    """It was refused for its length alone, and quickly."""
    assert time.process_time() - began_s < CPU_S_MAX
    assert [(found.field, found.reason) for found in violations] == [(field, Reason.LIMIT_EXCEEDED)]


def test_long_retry_schedule_is_refused_without_delay() -> None:
    message = with_many(RetryPolicy, "schedule", b"")
    violations: list[Violation] = []
    began_s = time.process_time()
    policy_in(message, frozenset({"retry_policy.schedule"}), Policy(), "p", violations)
    refused("p.schedule", violations, began_s)


def test_long_list_of_failover_urls_is_refused_without_delay() -> None:
    message = Subscription(http=with_many(HttpTarget, "failover_urls", b"x"))
    seen = Seen(tenant_id="", subscription_id="", uid=UUID(int=0), target=Target(url=""))
    reader = SubscriptionReader(Limits(), EgressPolicy(), https_only=False)
    violations: list[Violation] = []
    began_s = time.process_time()
    reader.read(message, frozenset({"http.failover_urls"}), seen, RequestedSecrets(), violations)
    refused("subscription.http.failover_urls", violations, began_s)


@pytest.mark.parametrize("path", [b"labels", b"nonsense"])
def test_long_update_mask_is_refused_without_delay(path: bytes) -> None:
    mask = with_many(FieldMask, "paths", path)
    violations: list[Violation] = []
    began_s = time.process_time()
    leaves_in(mask.paths, Subscription(), LEAVES, violations)
    refused("update_mask", violations, began_s)


def test_json_depth_check_costs_a_small_multiple_of_parsing() -> None:
    """4 MiB of arrays nested to the limit are valid, and must not block the event loop for long."""
    deep = "[" + ",".join(["[" * 127 + "]" * 127] * 1_000) + "]"
    messages = [Event(type="order.created", json_data=deep)] * 16
    violations: list[Violation] = []
    gc.disable()  # it takes its time by what else this process holds
    try:
        began_s = time.process_time()
        for _ in messages:
            orjson.loads(deep)
        reading_s = time.process_time() - began_s
        EventReader(Limits()).read(messages, violations)
        took_s = time.process_time() - began_s
    finally:
        gc.enable()
    assert violations == []
    assert took_s < 6 * reading_s


def test_brackets_in_strings_do_not_count_as_depth() -> None:
    message = Event(type="order.created", json_data='"' + "[{" * 200 + '"')
    violations: list[Violation] = []
    EventReader(Limits()).read([message], violations)
    assert violations == []


@pytest.mark.parametrize("state", [b"\x01", b"\x63"])
async def test_long_list_of_states_is_refused_without_delay(state: bytes) -> None:
    unused: Any = sentinel.unused
    pages = Pages(b"key", Limits())
    servicer = DeliveryServicer(
        deliveries=unused, delivery_actions=unused, lanes=unused, pages=pages
    )
    request = with_many(ListDeliveriesRequest, "states", state)
    request.tenant = "tenants/acme"
    began_s = time.process_time()
    with pytest.raises(InvalidArgumentError) as caught:
        await servicer.ListDeliveries(request, unused)
    refused("states", list(caught.value.violations), began_s)
