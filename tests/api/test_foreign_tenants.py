"""A caller bound to one tenant learns nothing of another, not even whether it exists.

Each method that takes a name is called with names of an existing foreign tenant and with names that
do not exist: both get the same answer and run the same statements.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf import json_format

from hookline.v1.access_service_pb2 import ListApiKeysRequest, RevokeApiKeyRequest
from hookline.v1.access_service_pb2_grpc import AccessServiceStub
from hookline.v1.event_service_pb2 import (
    ListEventsRequest,
    PublishEventsRequest,
    StreamPublishEventsRequest,
)
from hookline.v1.event_service_pb2_grpc import EventServiceStub
from hookline.v1.subscription_service_pb2 import CreateSubscriptionRequest
from hookline.v1.tenant_service_pb2 import CreateTenantRequest, ListTenantsRequest
from hookline.v1.tenant_service_pb2_grpc import TenantServiceStub
from hookline_service.api.middleware.methods import METHODS
from hookline_service.domain.api_key import key_id_in
from hookline_service.domain.caller import SERVICE, current_caller
from hookline_service.domain.ids import format_type_id
from hookline_service.domain.names import tenant_name
from hookline_service.store.database import Database
from tests.api.control import orders
from tests.api.keyed import Keyed, bearer, keyed
from tests.api.publishing import order
from tests.api.refusals import Refused, refusal
from tests.api.rpcs import CONTRACT, opened_by, request_of

NOTHING = "missing"
FOREIGN = "beta"
NAMED: dict[str, dict[str, Any]] = {
    "TenantService/GetTenant": {"name": "{tenant}"},
    "TenantService/UpdateTenant": {"tenant": {"name": "{tenant}", "display_name": "x"}},
    "EventService/PublishEvents": {
        "tenant": "{tenant}",
        "events": [{"type": "a", "json_data": "{}"}],
    },
    "EventService/GetEvent": {"name": "{event}"},
    "EventService/ListEvents": {"tenant": "{tenant}"},
    "EventService/ExplainEvent": {"name": "{event}", "subscription": "{subscription}"},
    "SubscriptionService/CreateSubscription": {
        "tenant": "{tenant}",
        "subscription_id": "orders",
        "subscription": {"event_types": ["*"], "http": {"url": "https://example.com/"}},
    },
    "SubscriptionService/GetSubscription": {"name": "{subscription}"},
    "SubscriptionService/ListSubscriptions": {"tenant": "{tenant}"},
    "SubscriptionService/UpdateSubscription": {
        "subscription": {"name": "{subscription}", "display_name": "x", "etag": '"0-1"'}
    },
    "SubscriptionService/DeleteSubscription": {"name": "{subscription}", "etag": "stale"},
    "SubscriptionService/PauseSubscription": {"name": "{subscription}"},
    "SubscriptionService/ResumeSubscription": {"name": "{subscription}"},
    "SubscriptionService/RotateSigningSecret": {"name": "{subscription}"},
    "SubscriptionService/SendTestEvent": {
        "name": "{subscription}",
        "event": {"type": "a", "json_data": "{}"},
    },
    "DeliveryService/GetDelivery": {"name": "{delivery}"},
    "DeliveryService/ListDeliveries": {"tenant": "{tenant}"},
    "DeliveryService/ListAttempts": {"delivery": "{delivery}"},
    "DeliveryService/RetryDelivery": {"name": "{delivery}"},
    "DeliveryService/CancelDelivery": {"name": "{delivery}"},
    "DeliveryService/WatchDeliveries": {"tenant": "{tenant}"},
    "DeliveryService/StartReplay": {
        "tenant": "{tenant}",
        "replay_id": "again",
        "replay": {"subscription": "{subscription}"},
    },
    "DeliveryService/GetReplay": {"name": "{tenant}/replays/again"},
    "DeliveryService/ListReplays": {"tenant": "{tenant}"},
    "DeliveryService/CancelReplay": {"name": "{tenant}/replays/again"},
    "AccessService/CreateApiKey": {
        "api_key": {"tenant": "{tenant}", "scopes": ["API_KEY_SCOPE_PUBLISH"]}
    },
    "AccessService/ListAuditEntries": {"tenant": "{tenant}"},
}
"""Requests that name a tenant or a resource of one, by method."""
LISTED = "DeliveryService/ListDeliveries"
BESIDES = {
    "by subscription": (LISTED, {"tenant": "tenants/acme", "subscription": "{subscription}"}),
    "by event": (LISTED, {"tenant": "tenants/acme", "event": "{event}"}),
    "by both": (LISTED, {"tenant": "{tenant}", "subscription": "{subscription}"}),
}
"""Requests in the caller's tenant that name a resource of another."""
CALLS = {method: (method, request) for method, request in NAMED.items()} | BESIDES
NAMING = {
    name.removeprefix("hookline.v1.")
    for name in CONTRACT
    if METHODS[name].resource_field
    and not METHODS[name].access.is_of_all_tenants
    and not METHODS[name].takes_stream  # by a test of its own, below
}
"""The methods whose requests name a resource, for callers bound to one tenant."""
OF_NO_TENANT = {"EventTypeService/GetEventType", "AccessService/RevokeApiKey"}
"""The methods of `NAMING` whose resource name has no tenant."""


@dataclass
class Foreign:
    """A server, a key of tenant acme with all scopes, and a foreign tenant with everything."""

    gateway: Keyed
    token: str
    ids: dict[str, str]
    statements: list[str] = field(default_factory=list)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return bearer(self.token)

    async def call(self, method: str, request: dict[str, Any], tenant: str) -> Any:  # noqa: ANN401
        """Call it with the request filled for a tenant; of a stream, what comes first."""
        rpc = METHODS[f"hookline.v1.{method}"]
        message = json_format.ParseDict(_filled(request, tenant, self.ids), request_of(rpc))
        call = opened_by(self.gateway.channel, rpc)(
            message.SerializeToString(), metadata=self.metadata, timeout=20
        )
        return await (anext(aiter(call)) if rpc.answers_stream else call)

    async def refused(self, method: str, request: dict[str, Any], tenant: str) -> Refused:
        """What a call is refused with, as if the tenant were called T."""
        answer = await refusal(self.call(method, request, tenant))
        answer.message = answer.message.replace(tenant, "T")
        answer.metadata = {key: text.replace(tenant, "T") for key, text in answer.metadata.items()}
        answer.status_bytes = 0
        return answer

    async def asked_by_own(self, method: str, request: dict[str, Any]) -> list[str]:
        """What a call with names of one's own asks of the database."""
        with self.asked() as statements, suppress(grpc.aio.AioRpcError):
            await self.call(method, request, "acme")
        return statements

    @contextmanager
    def asked(self) -> Iterator[list[str]]:
        """What calls ask of the database while inside."""
        self.statements.clear()
        found: list[str] = []
        yield found
        found.extend(self.statements)


def _filled(value: Any, tenant: str, ids: dict[str, str]) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, dict):
        return {key: _filled(part, tenant, ids) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, tenant, ids) for part in value]
    name = tenant_name(tenant)
    for hole, text in {
        "{tenant}": name,
        "{subscription}": f"{name}/subscriptions/orders",
        "{event}": f"{name}/events/{ids['event']}",
        "{delivery}": f"{name}/deliveries/{ids['delivery']}",
    }.items():
        value = value.replace(hole, text)
    return value


@pytest.fixture
async def foreign(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Foreign]:
    statements: list[str] = []
    connect = Database.connect

    def listen(asked: Any) -> None:  # noqa: ANN401 (asyncpg names no type)
        # It is called in a copy of the caller's context.
        if current_caller() is not SERVICE:  # the node's own tasks ask whenever they like
            statements.append(asked.query)

    async def connect_and_listen(
        database: Database, name: str, settings: Mapping[str, str]
    ) -> asyncpg.Connection[asyncpg.Record]:
        connection = await connect(database, name, settings)
        if name == "calls":
            connection.add_query_logger(listen)
        return connection

    monkeypatch.setattr(Database, "connect", connect_and_listen)
    async with keyed(database_url) as gateway:
        control = gateway.control
        await gateway.control.rig.tenant(FOREIGN)
        admin = bearer(await gateway.token())
        for tenant in ("acme", FOREIGN):
            await control.subscriptions.CreateSubscription(
                CreateSubscriptionRequest(
                    tenant=tenant_name(tenant), subscription_id="orders", subscription=orders()
                ),
                metadata=admin,
            )
        published = await EventServiceStub(control.channel).PublishEvents(
            PublishEventsRequest(tenant=tenant_name(FOREIGN), events=[order()]), metadata=admin
        )
        [row] = await control.rig.database.fetch(
            """SELECT delivery_id FROM pending_deliveries
               UNION ALL SELECT delivery_id FROM deliveries"""
        )
        ids = {
            "event": published.results[0].name.rpartition("/")[2],
            "delivery": format_type_id("dlv", row["delivery_id"]),
        }
        yield Foreign(gateway, await gateway.token(tenant="acme"), ids, statements)


def test_every_method_that_names_a_tenants_resource_has_a_request_here() -> None:
    assert set(NAMED) == NAMING - OF_NO_TENANT


@pytest.mark.parametrize("kind", sorted(CALLS))
async def test_a_foreign_name_and_a_missing_one_get_the_same_answer(
    foreign: Foreign, kind: str
) -> None:
    method, request = CALLS[kind]
    with foreign.asked() as for_foreign:
        answer = await foreign.refused(method, request, FOREIGN)
    with foreign.asked() as for_nothing:
        assert answer == await foreign.refused(method, request, NOTHING)
    assert for_foreign == for_nothing == []
    is_built = answer.code is not grpc.StatusCode.UNIMPLEMENTED
    assert answer.code is grpc.StatusCode.NOT_FOUND or not is_built
    assert bool(await foreign.asked_by_own(method, request)) is is_built, (
        "else the listener is broken"
    )


IDS = {
    method: request
    for method, request in NAMED.items()
    if re.search(r"\{(event|delivery)", str(request))
}


@pytest.mark.parametrize("method", sorted(IDS))
async def test_a_foreign_id_in_the_own_tenant_and_a_missing_one_get_the_same_answer(
    foreign: Foreign, method: str
) -> None:
    known, unknown = foreign.ids, {kind: id_[:-6] + "000000" for kind, id_ in foreign.ids.items()}
    answers, asked = [], []
    for ids in (unknown, known, unknown):  # the first teaches the connection the types
        foreign.ids = ids
        with foreign.asked() as statements:
            answer = str(await foreign.refused(method, IDS[method], "acme"))
        for kind, id_ in ids.items():
            answer = answer.replace(id_, kind)
        answers.append(answer)
        asked.append(statements)
    assert answers[1] == answers[2]
    assert asked[1] == asked[2]
    is_built = "UNIMPLEMENTED" not in answers[0]
    assert "NOT_FOUND" in answers[0] or not is_built
    assert bool(asked[1]) is is_built


@pytest.mark.parametrize("method", sorted(NAMED))
async def test_a_foreign_name_is_answered_like_a_missing_one_to_a_caller_of_all_tenants(
    foreign: Foreign, method: str
) -> None:
    """No secret depends on it, but clients need to handle only one answer."""
    bound = await foreign.refused(method, NAMED[method], FOREIGN)
    foreign.token = await foreign.gateway.token()
    free = await foreign.refused(method, NAMED[method], NOTHING)
    assert (bound.code, bound.reason) == (free.code, free.reason)


async def test_a_stream_answers_each_message_for_its_tenant(foreign: Foreign) -> None:
    stream: Any = EventServiceStub(foreign.gateway.channel).StreamPublishEvents(
        metadata=foreign.metadata
    )
    answers = {}
    for sequence, tenant in enumerate(("acme", FOREIGN, NOTHING, "acme"), start=1):
        await stream.write(
            StreamPublishEventsRequest(
                sequence=sequence, tenant=tenant_name(tenant), events=[order()]
            )
        )
        answer = await stream.read()
        assert answer.sequence == sequence
        answer.sequence = 0
        answers[sequence] = str(answer).replace(FOREIGN, NOTHING)
    assert "published" in answers[1]
    assert "published" in answers[4]
    assert answers[2] == answers[3]
    assert "TENANT_NOT_FOUND" in answers[2]
    assert len(await foreign.gateway.control.rig.database.fetch("SELECT FROM events")) == 3
    stream.cancel()


async def test_revoking_a_foreign_key_and_a_missing_one_get_the_same_answer(
    foreign: Foreign,
) -> None:
    other = key_id_in(await foreign.gateway.token(tenant=FOREIGN)) or ""
    of_all = key_id_in(await foreign.gateway.token()) or ""
    answers, asked = [], []
    for key_id in (other, of_all, "000000000000"):
        with foreign.asked() as statements:
            answer = await refusal(
                AccessServiceStub(foreign.gateway.channel).RevokeApiKey(
                    RevokeApiKeyRequest(name=f"apiKeys/{key_id}"), metadata=foreign.metadata
                )
            )
        answers.append(str(answer).replace(key_id, "ID"))
        asked.append(statements)
    assert "API_KEY_NOT_FOUND" in answers[0]
    assert len(set(answers)) == 1
    assert asked[0] == asked[1] == asked[2] != []
    keys = await foreign.gateway.keys.list_page(None, limit=9)
    assert [key for key in keys if key.revoke_time] == []


async def test_reads_across_tenants_refuse_callers_bound_to_one(foreign: Foreign) -> None:
    stub = EventServiceStub(foreign.gateway.channel)
    request = ListEventsRequest(tenant="tenants/-")
    answer = await refusal(stub.ListEvents(request, metadata=foreign.metadata))
    assert (answer.code, answer.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "PERMISSION_DENIED",
    )
    everything = await stub.ListEvents(request, metadata=bearer(await foreign.gateway.token()))
    assert len(everything.events) == 1


async def test_lists_show_the_own_tenant_and_refuse_page_tokens_of_other_lists(
    foreign: Foreign,
) -> None:
    tenants, access = (
        TenantServiceStub(foreign.gateway.channel),
        AccessServiceStub(foreign.gateway.channel),
    )
    boss = bearer(await foreign.gateway.token())
    seen = await tenants.ListTenants(ListTenantsRequest(), metadata=foreign.metadata)
    assert [tenant.name for tenant in seen.tenants] == ["tenants/acme"]
    keys = await access.ListApiKeys(ListApiKeysRequest(), metadata=foreign.metadata)
    assert [key.tenant for key in keys.api_keys] == ["tenants/acme"]
    tenant_page = await tenants.ListTenants(ListTenantsRequest(page_size=1), metadata=boss)
    key_page = await access.ListApiKeys(ListApiKeysRequest(page_size=1), metadata=boss)
    for call in (
        tenants.ListTenants(
            ListTenantsRequest(page_token=tenant_page.next_page_token), metadata=foreign.metadata
        ),
        access.ListApiKeys(
            ListApiKeysRequest(page_token=key_page.next_page_token), metadata=foreign.metadata
        ),
    ):
        assert (await refusal(call)).reason == "PAGE_TOKEN_INVALID"


@pytest.mark.parametrize("tenant_id", [FOREIGN, NOTHING, "acme"])
async def test_creating_a_tenant_does_not_disclose_which_exist(
    foreign: Foreign, tenant_id: str
) -> None:
    answer = await refusal(
        TenantServiceStub(foreign.gateway.channel).CreateTenant(
            CreateTenantRequest(tenant_id=tenant_id), metadata=foreign.metadata
        )
    )
    assert answer.code is grpc.StatusCode.PERMISSION_DENIED
    assert tenant_id not in answer.message


async def test_idempotency_keys_are_per_tenant(foreign: Foreign) -> None:
    """The same idempotency key and another event in two tenants: they do not collide."""
    stub, boss = EventServiceStub(foreign.gateway.channel), bearer(await foreign.gateway.token())
    for tenant, subject, metadata in (
        (FOREIGN, "theirs", boss),
        ("acme", "ours", foreign.metadata),
    ):
        event = order(idempotency_key="the same", subject=subject)
        answer = await stub.PublishEvents(
            PublishEventsRequest(tenant=tenant_name(tenant), events=[event]), metadata=metadata
        )
        assert not answer.results[0].deduplicated
