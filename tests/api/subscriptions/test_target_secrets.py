"""Secrets of targets: header values and certificates can be written and never read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from google.protobuf.json_format import MessageToJson

from hookline.v1.event_pb2 import Event
from hookline.v1.subscription_service_pb2 import SendTestEventRequest
from hookline.v1.target_pb2 import ClientCertificate, HttpTarget
from hookline_service.targets.http.sender import HttpTargetSender
from hookline_service.targets.http.tls import ClientIdentity
from tests.api.control import ORDERS, URL, Control, controlling, http, orders
from tests.api.refusals import refusal
from tests.pipeline.rig import Receiver
from tests.targets.http.test_client_certificate import CHAIN, KEY, KEYS, certificate_of, pem_of

SECRETS = {"authorization": "Bearer s3cr3t-of-acme", "X-Token": "t0k3n-of-acme"}
PATH = "subscription.http."
INPUT = ClientCertificate(certificate_chain=CHAIN, private_key=KEY)


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url) as control:
        yield control


async def sent_headers(control: Control, receiver: Receiver) -> dict[str, str]:
    event = Event(type="order.created", json_data="{}")
    await control.subscriptions.SendTestEvent(SendTestEventRequest(name=ORDERS, event=event))
    return receiver.requests[-1][0]


async def identity_of(control: Control) -> ClientIdentity | None:
    """Return the client certificate subject of the requests."""
    prepared = await control.rig.configs.prepare(UUID((await control.get()).uid))
    assert prepared is not None
    sender = prepared[1]
    assert isinstance(sender, HttpTargetSender)
    return sender.target.endpoints[0].origin.identity


def shows_nothing(text: str) -> bool:
    return not any(part in text for part in (*SECRETS.values(), *KEY.splitlines()[1:-1]))


# ----------------------------------------------------------------------------------- secret headers


async def test_secret_headers_are_sent_and_only_their_names_are_read(control: Control) -> None:
    async with Receiver() as receiver:
        wanted = orders(http=HttpTarget(url=receiver.url, secret_headers=SECRETS))
        made = await control.create(wanted)
        headers = await sent_headers(control, receiver)
    assert headers["authorization"] == SECRETS["authorization"]
    assert headers["x-token"] == SECRETS["X-Token"]
    for answer in (made.subscription, await control.get(), (await control.page()).subscriptions[0]):
        assert list(answer.http.secret_header_names) == ["X-Token", "authorization"]
        assert not answer.http.secret_headers
    assert shows_nothing(MessageToJson(made))


@pytest.mark.parametrize(
    "paths", [[], ["*"], ["http"], ["http.headers"], ["http.url", "display_name"]], ids=str
)
async def test_update_of_other_fields_keeps_secret_headers(
    control: Control, paths: list[str]
) -> None:
    """A subscription that Get returned can be sent back under any mask."""
    async with Receiver() as receiver:
        target = HttpTarget(url=receiver.url, secret_headers=SECRETS, client_certificate=INPUT)
        await control.create(orders(http=target))
        seen = await control.get()
        changed = await control.update(seen, paths)
        assert changed.http.secret_header_names == seen.http.secret_header_names
        assert changed.http.client_certificate == seen.http.client_certificate
        assert (await sent_headers(control, receiver))["x-token"] == SECRETS["X-Token"]


@pytest.mark.parametrize("paths", [[], ["*"], ["http"], ["http.secret_headers"]], ids=str)
async def test_update_replaces_all_secret_headers(control: Control, paths: list[str]) -> None:
    async with Receiver() as receiver:
        await control.create(orders(http=HttpTarget(url=receiver.url, secret_headers=SECRETS)))
        before = await control.get()
        new = orders(http=HttpTarget(url=receiver.url, secret_headers={"X-Token": "another"}))
        changed = await control.update(new, paths)
        assert list(changed.http.secret_header_names) == ["X-Token"]
        assert changed.etag != before.etag
        headers = await sent_headers(control, receiver)
        assert headers["x-token"] == "another"
        assert "authorization" not in headers


async def test_new_values_under_the_same_header_names_are_a_change(control: Control) -> None:
    async with Receiver() as receiver:
        await control.create(orders(http=HttpTarget(url=receiver.url, secret_headers={"x-a": "1"})))
        before = await control.get()
        new = orders(http=HttpTarget(url=receiver.url, secret_headers={"x-a": "2"}))
        assert (await control.update(new, ["http.secret_headers"])).etag != before.etag
        assert (await sent_headers(control, receiver))["x-a"] == "2"


@pytest.mark.parametrize("paths", [[], ["*"], ["http"], ["http.url"], ["http.failover_urls"]])
async def test_secret_headers_are_not_sent_to_a_changed_url(
    control: Control, paths: list[str]
) -> None:
    """Otherwise a caller that may change the URL could read the headers at its own server."""
    async with Receiver() as receiver, Receiver() as other:
        made = HttpTarget(url=receiver.url, secret_headers=SECRETS)
        await control.create(orders(http=made))
        wanted = HttpTarget(url=receiver.url, failover_urls=[other.url])
        if "http.failover_urls" not in paths:
            wanted = HttpTarget(url=other.url)
        answer = await refusal(control.update(orders(http=wanted), paths))
        assert answer.violations == {"subscription.http.secret_headers": "FIELD_REQUIRED"}
        assert shows_nothing(answer.message)

        masks = ["http.url", "http.failover_urls", "http.secret_headers"]
        removed = await control.update(orders(http=wanted), masks)
        assert not removed.http.secret_header_names


async def test_secret_headers_can_be_given_again_with_a_changed_url(control: Control) -> None:
    async with Receiver() as receiver, Receiver() as other:
        await control.create(orders(http=HttpTarget(url=receiver.url, secret_headers=SECRETS)))
        target = HttpTarget(url=other.url, secret_headers={"x-token": "anew"})
        await control.update(orders(http=target), ["http"])
        assert (await sent_headers(control, other))["x-token"] == "anew"


@pytest.mark.parametrize("path", ["http.secret_headers", "http.secretHeaders"])
async def test_secret_headers_are_removed_by_the_update_mask(control: Control, path: str) -> None:
    async with Receiver() as receiver:
        await control.create(orders(http=HttpTarget(url=receiver.url, secret_headers=SECRETS)))
        changed = await control.update(orders(), [path])
        assert not changed.http.secret_header_names
        assert "x-token" not in await sent_headers(control, receiver)
    assert await control.rig.database.fetch("SELECT FROM target_secrets") == []


async def test_rotation_pause_and_resume_keep_secret_headers(control: Control) -> None:
    async with Receiver() as receiver:
        await control.create(orders(http=HttpTarget(url=receiver.url, secret_headers=SECRETS)))
        await control.rotate()
        await control.pause()
        await control.resume()
        assert (await sent_headers(control, receiver))["x-token"] == SECRETS["X-Token"]


BAD_HEADERS: dict[str, dict[str, str]] = {
    "CR LF": {"x-a": "s3cr3t-of-acme\r\nx-b: 1"},
    "reserved": {"webhook-id": "s3cr3t-of-acme"},
    "host": {"Host": "s3cr3t-of-acme"},
    "no name": {"a b": "s3cr3t-of-acme"},
    "not ASCII": {"x-a": "s3cr3t-of-acme ☂"},
    "the same in another case": {"x-a": "s3cr3t-of-acme", "X-A": "s3cr3t-of-acme"},
}


@pytest.mark.parametrize("kind", BAD_HEADERS)
async def test_secret_headers_follow_the_header_rules_and_refusals_omit_values(
    control: Control, kind: str
) -> None:
    await control.create()
    before = await control.get()
    wanted = orders(http=http(secret_headers=BAD_HEADERS[kind]))
    for call in (control.create(wanted, "new"), control.update(wanted, ["http.secret_headers"])):
        found = await refusal(call)
        assert set(found.violations.values()) == {"HEADER_INVALID"}
        assert all(path.startswith(f"{PATH}secret_headers[") for path in found.violations)
        assert "s3cr3t" not in str(found)
    assert await control.get() == before


async def test_header_limits_count_all_headers_including_kept_ones(control: Control) -> None:
    await control.create(orders(http=http(secret_headers={f"x-s{n}": "1" for n in range(20)})))
    many = orders(http=http(headers={f"x-h{n}": "1" for n in range(13)}))
    found = await refusal(control.update(many, ["http.headers"]))
    assert found.violations == {f"{PATH}headers": "LIMIT_EXCEEDED"}
    large = orders(http=http(headers={"x-h": "1" * 8_100}))
    found = await refusal(control.update(large, ["http.headers"]))
    assert found.violations == {f"{PATH}headers": "LIMIT_EXCEEDED"}
    twice = orders(http=http(headers={"X-S7": "1"}))
    found = await refusal(control.update(twice, ["http.headers"]))
    assert found.violations == {f"{PATH}headers['X-S7']": "HEADER_INVALID"}
    both = orders(http=http(headers={"X-S7": "1"}, secret_headers={"x-new": "1"}))
    changed = await control.update(both, ["http.headers", "http.secret_headers"])
    assert list(changed.http.secret_header_names) == ["x-new"]


# ----------------------------------------------------------------------------------- certificates


async def test_a_certificate_is_sent_to_the_target_and_its_key_is_never_readable(
    control: Control,
) -> None:
    made = await control.create(orders(http=http(client_certificate=INPUT)))
    shown = made.subscription.http.client_certificate
    assert (shown.certificate_chain, shown.private_key) == ("", "")
    assert (shown.subject, len(shown.fingerprint)) == ("CN=hookline", 64)
    assert shown.expire_time.ToDatetime().year == 2027
    assert (await control.get()).http.client_certificate == shown
    assert await identity_of(control) == ClientIdentity(CHAIN, KEY)
    assert shows_nothing(MessageToJson(made))


@pytest.mark.parametrize("paths", [[], ["*"], ["http.client_certificate"]], ids=str)
async def test_a_certificate_is_replaced(control: Control, paths: list[str]) -> None:
    await control.create(orders(http=http(client_certificate=INPUT)))
    key = KEYS["ed25519"]()
    new = ClientCertificate(certificate_chain=certificate_of(key), private_key=pem_of(key))
    changed = await control.update(orders(http=http(client_certificate=new)), paths)
    assert changed.http.client_certificate.fingerprint
    assert await identity_of(control) == ClientIdentity(certificate_of(key), pem_of(key))


async def test_certificate_is_removed_by_the_update_mask(control: Control) -> None:
    await control.create(orders(http=http(client_certificate=INPUT, secret_headers=SECRETS)))
    changed = await control.update(orders(), ["http.client_certificate"])
    assert not changed.http.HasField("client_certificate")
    assert changed.http.secret_header_names
    assert await identity_of(control) is None


@pytest.mark.parametrize("paths", [[], ["*"], ["http"], ["http.url"], ["http.failover_urls"]])
async def test_certificate_is_not_presented_to_a_changed_url(
    control: Control, paths: list[str]
) -> None:
    """Otherwise a caller that may change the URL could authenticate as the owner there."""
    await control.create(orders(http=http(client_certificate=INPUT)))
    wanted = http(failover_urls=["https://other.example/"])
    if "http.failover_urls" not in paths:
        wanted = http(url="https://other.example/")
    answer = await refusal(control.update(orders(http=wanted), paths))
    assert answer.violations == {"subscription.http.client_certificate": "FIELD_REQUIRED"}
    assert shows_nothing(answer.message)
    assert (await control.get()).http.url == URL

    masks = ["http.url", "http.failover_urls", "http.client_certificate"]
    removed = await control.update(orders(http=wanted), masks)
    assert not removed.http.HasField("client_certificate")
    assert await identity_of(control) is None


async def test_all_secrets_that_block_a_url_change_are_reported_together(control: Control) -> None:
    await control.create(orders(http=http(client_certificate=INPUT, secret_headers=SECRETS)))
    wanted = orders(http=http(url="https://other.example/"))
    answer = await refusal(control.update(wanted, ["http.url"]))
    assert set(answer.violations) == {f"{PATH}secret_headers", f"{PATH}client_certificate"}


async def test_certificate_can_be_given_again_with_a_changed_url(control: Control) -> None:
    await control.create(orders(http=http(client_certificate=INPUT)))
    key = KEYS["ed25519"]()
    new = ClientCertificate(certificate_chain=certificate_of(key), private_key=pem_of(key))
    wanted = http(url="https://other.example/", client_certificate=new)
    await control.update(orders(http=wanted), ["http"])
    assert await identity_of(control) == ClientIdentity(certificate_of(key), pem_of(key))


BAD_CERTIFICATES: dict[str, tuple[ClientCertificate, dict[str, str]]] = {
    "no key": (
        ClientCertificate(certificate_chain=CHAIN),
        {"private_key": "FIELD_REQUIRED"},
    ),
    "no certificate": (
        ClientCertificate(private_key=KEY),
        {"certificate_chain": "FIELD_REQUIRED"},
    ),
    "nonsense": (
        ClientCertificate(certificate_chain="x", private_key=KEY),
        {"certificate_chain": "FIELD_INVALID"},
    ),
    "another's key": (
        ClientCertificate(certificate_chain=CHAIN, private_key=pem_of(KEYS["P-256"]())),
        {"private_key": "FIELD_INVALID"},
    ),
}


@pytest.mark.parametrize("kind", BAD_CERTIFICATES)
async def test_unusable_certificate_is_refused(control: Control, kind: str) -> None:
    await control.create()
    bad, reasons = BAD_CERTIFICATES[kind]
    expected = {f"{PATH}client_certificate.{name}": reason for name, reason in reasons.items()}
    wanted = orders(http=http(client_certificate=bad))
    for call in (control.create(wanted, "new"), control.update(wanted)):
        found = await refusal(call)
        assert found.violations == expected
        assert shows_nothing(str(found))


# ----------------------------------------------------------------------------------------- at rest


async def stored_public_fields(control: Control) -> list[tuple[str, str]]:
    rows = await control.rig.database.fetch(
        "SELECT kind, encode(sealed, 'escape') || shown::text AS text FROM target_secrets"
    )
    return [(row["kind"], row["text"]) for row in rows]


async def test_stored_secrets_are_encrypted_and_deleted_with_the_subscription(
    control: Control,
) -> None:
    await control.create(orders(http=http(client_certificate=INPUT, secret_headers=SECRETS)))
    stored = await stored_public_fields(control)
    assert sorted(kind for kind, _ in stored) == ["CERTIFICATE", "HEADERS"]
    assert all(shows_nothing(text) for _, text in stored)
    await control.delete()
    assert await stored_public_fields(control) == []


@pytest.mark.parametrize("moved", ["another subscription", "another version"])
async def test_secrets_moved_to_another_row_are_not_decrypted(control: Control, moved: str) -> None:
    await control.create(orders(http=http(secret_headers=SECRETS)), "victim")
    await control.create(orders(http=http(secret_headers={"x-a": "1"})))
    if moved == "another version":
        await control.rig.database.fetch("UPDATE target_secrets SET version = version + 1")
    else:
        await control.rig.database.fetch(
            """UPDATE target_secrets SET sealed = v.sealed FROM target_secrets v
               JOIN subscriptions s USING (subscription_uid)
               WHERE s.subscription_id = 'victim'"""
        )
    event = Event(type="order.created", json_data="{}")
    request = SendTestEventRequest(name=ORDERS, event=event)
    found = await refusal(control.subscriptions.SendTestEvent(request))
    assert "cannot be opened" in found.message
    assert (await control.get()).http.url == URL
