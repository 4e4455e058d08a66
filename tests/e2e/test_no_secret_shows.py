"""Everything that a deployment wrote in a full run, searched for every secret that was used in it.

Written is: what two processes logged at the finest level, every row of every table, every answer of
the API but the ones that show a secret this once, every error, and every span and metric that was
exported. A secret is looked for in clear, and in whatever a careless hand might have made of it:
base64, hexadecimal, its raw bytes.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg
import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from hookline import HooklineClient
from hookline.errors import HooklineError
from hookline.v1.access_service_pb2 import CreateApiKeyRequest, ListApiKeysRequest
from hookline.v1.access_service_pb2 import ListAuditEntriesRequest as AuditRequest
from hookline.v1.api_key_pb2 import API_KEY_SCOPE_PUBLISH
from hookline.v1.delivery_service_pb2 import ListAttemptsRequest, ListDeliveriesRequest
from hookline.v1.event_pb2 import Event
from hookline.v1.operations_service_pb2 import GetStatusRequest
from hookline.v1.subscription_service_pb2 import (
    CreateSubscriptionRequest,
    GetSubscriptionRequest,
    ListSubscriptionsRequest,
    RotateSigningSecretRequest,
    SendTestEventRequest,
    UpdateSubscriptionRequest,
)
from hookline.v1.target_pb2 import SIGNATURE_SCHEME_ED25519, ClientCertificate, HttpTarget
from hookline_service.app.keys import create_api_key
from hookline_service.cli.receiver import Arrival, Receiver
from hookline_service.config import Role, Settings
from hookline_service.domain.caller import Scope
from hookline_service.store.api_keys import NewApiKey
from tests.collector import Collector
from tests.e2e.processes import Node, run_hookline
from tests.targets.http.test_client_certificate import certificate_of, pem_of
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

TENANT = "tenants/default"
SENT = "x-sent-openly"
"""A header value that is no secret, and must be found: the search is no good otherwise."""

REVEALING_LENGTH = 12
"""What is shorter may stand anywhere by chance."""


@dataclass
class Search:
    """The secrets, and all that was written."""

    secrets: dict[str, str] = field(default_factory=dict)
    written: list[tuple[str, str]] = field(default_factory=list)

    def secret(self, name: str, text: str) -> str:
        self.secrets[name] = text
        return text

    def wrote(self, where: str, what: str | Message | Iterable[str]) -> None:
        if isinstance(what, Message):
            text = MessageToJson(what)
        else:
            text = what if isinstance(what, str) else "\n".join(what)
        self.written.append((where, text))

    def found(self, text: str) -> list[str]:
        """Where a text stands, in any spelling."""
        spellings = list(spellings_of(text))
        return [
            f"{where}: {spelling[:12]}…"
            for where, written in self.written
            for spelling in spellings
            if spelling in written
        ]


def spellings_of(secret: str) -> Iterable[str]:
    """A secret, what is behind its prefix, and both in base64 and hexadecimal, raw bytes too."""
    _, _, payload = secret.partition("_")
    for part in {secret, payload if len(payload) >= REVEALING_LENGTH else secret}:
        yield part
        # Base64 of the same bytes at another offset looks otherwise; its middle is searched for.
        yield base64.b64encode(part.encode()).decode().rstrip("=")[:-2]
        yield part.encode().hex()
        try:
            raw = base64.b64decode(part, validate=True)
        except ValueError:
            continue
        yield raw.hex()
        yield base64.urlsafe_b64encode(raw).decode().rstrip("=")


def master_key(search: Search, name: str) -> str:
    return search.secret(name, base64.b64encode(secrets.token_bytes(32)).decode())


async def dump(url: str) -> list[tuple[str, str]]:
    """Every row of every table, as Postgres writes it."""
    connection = await asyncpg.connect(url)
    try:
        tables = await connection.fetch(
            """SELECT c.oid::regclass::text FROM pg_class c
               JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'public' AND c.relkind = 'r'"""
        )
        found = []
        for (table,) in tables:
            rows = await connection.fetch(f"SELECT t::text FROM {table} t")  # noqa: S608 - ours
            found.append((f"table {table}", "\n".join(row[0] for row in rows)))
        return found
    finally:
        await connection.close()


def subscription(url: str, search: Search, name: str) -> CreateSubscriptionRequest:
    """One with everything that is secret."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = pem_of(key)
    for number, line in enumerate(pem.splitlines()[1:-1]):
        search.secret(f"{name}: line {number} of the client key", line)
    search.secret(f"{name}: the client key", str(key.private_numbers().private_value))
    request = CreateSubscriptionRequest(tenant=TENANT, subscription_id=name)
    request.subscription.event_types.append("*")
    request.subscription.retry_policy.max_attempts = 1
    value = search.secret(f"{name}: secret header", f"Bearer_{secrets.token_urlsafe(24)}")
    request.subscription.http.CopyFrom(
        HttpTarget(
            url=url,
            headers={"x-open": SENT},
            secret_headers={"authorization": value},
            client_certificate=ClientCertificate(
                certificate_chain=certificate_of(key), private_key=pem
            ),
        )
    )
    return request


async def refused(search: Search, call: object) -> None:
    """A call that must be refused; its answer is recorded."""
    with pytest.raises((HooklineError, grpc.aio.AioRpcError)) as caught:
        await call  # type: ignore[misc]  # any call
    error = caught.value
    search.wrote("a refusal", f"{error!r} {error} {getattr(error, '__cause__', '')}")


async def use_everything(search: Search, client: HooklineClient, receiver: Receiver) -> None:
    """The run: each secret is made, imported, used, exchanged, and handed in wrongly."""
    subscriptions = client.subscriptions
    made = await subscriptions.CreateSubscription(subscription(receiver.url, search, "hmac"))
    search.secret("made whsec_", made.signing_secret)
    search.wrote("CreateSubscription", made.subscription)
    wanted = subscription("http://127.0.0.1:1024/none", search, "pair")
    wanted.subscription.http.signature_scheme = SIGNATURE_SCHEME_ED25519
    pair = await subscriptions.CreateSubscription(wanted)
    search.secret("made whsk_", pair.signing_secret)
    seed = base64.b64decode(pair.signing_secret.removeprefix("whsk_"))[:32]
    search.secret("seed of whsk_", base64.b64encode(seed).decode())
    search.wrote("CreateSubscription", pair.subscription)

    await client.publish("default", [Event(type="a.b", json_data="{}")] * 3)
    imported = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    name = made.subscription.name
    rotation = RotateSigningSecretRequest(
        name=name,
        signing_secret=search.secret("imported whsec_", imported),
        overlap=Duration(seconds=600),
    )
    await subscriptions.RotateSigningSecret(rotation)
    wrong = RotateSigningSecretRequest(
        name=name,
        signing_secret=search.secret("refused", f"whsec_{secrets.token_urlsafe(10)}!"),
    )
    await refused(search, subscriptions.RotateSigningSecret(wrong))
    bad = subscription(receiver.url, search, "refused")
    bad.subscription.http.secret_headers["x-bad"] = search.secret(
        "refused header", f"{secrets.token_urlsafe(16)}\n"
    )
    bad.subscription.http.client_certificate.certificate_chain = "x"
    await refused(search, subscriptions.CreateSubscription(bad))
    changed = subscription(receiver.url, search, "changed").subscription
    changed.name = name
    update = UpdateSubscriptionRequest(subscription=changed)
    search.wrote("Update", await subscriptions.UpdateSubscription(update))
    test = SendTestEventRequest(name=name, event=Event(type="a.b", json_data="{}"))
    search.wrote("SendTestEvent", await subscriptions.SendTestEvent(test))
    key = CreateApiKeyRequest()
    key.api_key.tenant = TENANT
    key.api_key.scopes.append(API_KEY_SCOPE_PUBLISH)
    answer = await client.access.CreateApiKey(key)
    search.secret("made token", answer.token)
    search.wrote("CreateApiKey", answer.api_key)


async def read_everything(search: Search, client: HooklineClient) -> None:
    """What may be asked for."""
    access, subscriptions = client.access, client.subscriptions
    listed = await subscriptions.ListSubscriptions(ListSubscriptionsRequest(tenant=TENANT))
    search.wrote("ListSubscriptions", listed)
    for one in listed.subscriptions:
        request = GetSubscriptionRequest(name=one.name)
        search.wrote("GetSubscription", await subscriptions.GetSubscription(request))
    search.wrote("ListApiKeys", await access.ListApiKeys(ListApiKeysRequest()))
    search.wrote(
        "audit", await access.ListAuditEntries(AuditRequest(tenant="tenants/-", page_size=1_000))
    )
    search.wrote("status", await client.operations.GetStatus(GetStatusRequest()))
    deliveries = await client.deliveries.ListDeliveries(ListDeliveriesRequest(tenant=TENANT))
    search.wrote("ListDeliveries", deliveries)
    for delivery in deliveries.deliveries:
        attempts = ListAttemptsRequest(delivery=delivery.name)
        search.wrote("ListAttempts", await client.deliveries.ListAttempts(attempts))


async def test_no_secret_shows_in_anything_that_a_deployment_writes(database_url: str) -> None:
    search = Search()
    old, new = master_key(search, "old master key"), master_key(search, "new master key")
    variables = {
        "HOOKLINE_DATABASE_URL": database_url,
        "HOOKLINE_MASTER_KEY": f"{old},{new}",
        "HOOKLINE_EGRESS_ALLOW": "127.0.0.0/8",
        "HOOKLINE_LOG_LEVEL": "debug",
        "HOOKLINE_WORKERS": "2",
    }

    def first_key(now: datetime) -> NewApiKey:
        del now
        scopes = frozenset({Scope.ADMIN})
        return NewApiKey(display_name="1", tenant_id=None, scopes=scopes, expire_time=None)

    arrivals: list[Arrival] = []
    _, token = await create_api_key(Settings.from_environ(variables, Role.KEYS), first_key)
    search.secret("first token", token)
    async with (
        Collector() as collector,
        Receiver("test", arrivals.append, answers=[200, 503, 200]) as receiver,
    ):
        with Node(["serve"], variables | collector.variables) as node:
            target = node.ready().target
            async with HooklineClient(target, token=token) as client:
                await use_everything(search, client, receiver)
                await until(lambda: len(arrivals) >= 4, "deliveries came")
                rotated = run_hookline(
                    "keys",
                    "rotate-master",
                    variables=variables | {"HOOKLINE_MASTER_KEY": f"{new},{old}"},
                )
                assert rotated.returncode == 0, rotated.stderr
                search.wrote("rotate-master", rotated.stdout + rotated.stderr)
                await read_everything(search, client)
            wrong = search.secret("wrong token", f"hk_{'a' * 8}_{secrets.token_hex(20)}")
            async with HooklineClient(target, token=wrong) as unknown:
                status = unknown.operations.GetStatus(GetStatusRequest())
                await refused(search, status)
            assert node.stop() == 0
        search.wrote("the log", node.lines)
        search.wrote("spans", [str(received.span) for received in collector.spans])
        search.wrote("metrics", [str(metric) for metric in collector.metrics.values()])
    assert collector.spans
    search.written += await dump(database_url)

    assert len(search.secrets) > 15
    assert search.found(SENT), "what is no secret is found"
    shown = {name: where for name, text in search.secrets.items() if (where := search.found(text))}
    assert shown == {}


def test_what_is_looked_for_would_be_found() -> None:
    """In each of the spellings."""
    key = secrets.token_bytes(32)
    secret = f"whsec_{base64.b64encode(key).decode()}"
    for written in (
        secret,
        f"key={secret.removeprefix('whsec_')}",
        f"\\x{key.hex()}",
        base64.b64encode(secret.encode()).decode(),
        base64.urlsafe_b64encode(key).decode(),
        f"\\x{secret.encode().hex()}",
    ):
        search = Search()
        search.wrote("somewhere", f"… {written} …")
        assert search.found(secret), written
