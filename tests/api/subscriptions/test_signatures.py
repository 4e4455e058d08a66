"""Signatures of requests: schemes, rotations, and verification by receivers.

The verifiers share no code with the signer: the library of the standard's authors for `v1`, integer
arithmetic for `v1a` (tests/targets/http/rfc8032.py), and the client's own receiver kit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import standardwebhooks
from google.protobuf.duration_pb2 import Duration

import hookline.webhook
from hookline.v1.event_pb2 import Event
from hookline.v1.subscription_service_pb2 import SendTestEventRequest
from hookline.v1.target_pb2 import (
    SIGNATURE_SCHEME_ED25519,
    SIGNATURE_SCHEME_HMAC_SHA256,
    HttpTarget,
)
from tests.api.control import ORDERS, Control, controlling, orders
from tests.api.refusals import refusal
from tests.pipeline.rig import Receiver
from tests.targets.http.rfc8032 import signed_v1a
from tests.targets.http.test_signature import ED25519_PUBLIC, ED25519_SECRET, HMAC_SECRET

ED25519, HMAC = SIGNATURE_SCHEME_ED25519, SIGNATURE_SCHEME_HMAC_SHA256

Request = tuple[dict[str, str], bytes]


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url) as control:
        yield control


async def sent(control: Control, receiver: Receiver) -> Request:
    """Return a request that the target receives, signed at the current time."""
    event = Event(type="order.created", json_data='{"id":1}')
    await control.subscriptions.SendTestEvent(SendTestEventRequest(name=ORDERS, event=event))
    return receiver.requests[-1]


def has_v1(request: Request, secret: str) -> bool:
    headers, body = request
    try:
        standardwebhooks.Webhook(secret).verify(body, headers)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True


def has_v1a(request: Request, public_key: str) -> bool:
    headers, body = request
    return signed_v1a(
        public_key,
        headers["webhook-id"],
        headers["webhook-timestamp"],
        body,
        headers["webhook-signature"],
    )


def the_kit_accepts(request: Request, *secrets: str) -> bool:
    headers, body = request
    try:
        hookline.webhook.verify(headers, body, secrets)
    except hookline.webhook.SignatureMismatchError:
        return False
    return True


def target(receiver: Receiver, **fields: object) -> HttpTarget:
    return HttpTarget(url=receiver.url, **fields)  # type: ignore[arg-type]  # a test's own fields


async def test_ed25519_signatures_verify_with_the_readable_public_key(
    control: Control, receiver: Receiver
) -> None:
    made = await control.create(orders(http=target(receiver, signature_scheme=ED25519)))
    assert made.signing_secret.startswith("whsk_")
    (key,) = (await control.get()).http.signing_keys
    assert (key.scheme, key.public_key[:5]) == (ED25519, "whpk_")
    assert (await control.get()).http.signature_scheme == ED25519

    request = await sent(control, receiver)

    assert has_v1a(request, key.public_key)
    assert the_kit_accepts(request, key.public_key)
    assert not has_v1a(request, ED25519_PUBLIC)
    assert not the_kit_accepts(request, ED25519_PUBLIC)
    assert key.public_key[5:] not in str(request[0])


async def test_a_key_pair_can_be_imported(control: Control, receiver: Receiver) -> None:
    wanted = orders(http=target(receiver, signature_scheme=ED25519))
    made = await control.create(wanted, signing_secret=ED25519_SECRET)
    assert made.signing_secret == ED25519_SECRET
    (key,) = made.subscription.http.signing_keys
    assert key.public_key == ED25519_PUBLIC
    assert has_v1a(await sent(control, receiver), ED25519_PUBLIC)


async def test_during_a_rotation_either_public_key_verifies(
    control: Control, receiver: Receiver
) -> None:
    await control.create(orders(http=target(receiver, signature_scheme=ED25519)))
    rotated = await control.rotate(overlap=Duration(seconds=60))
    assert rotated.signing_secret.startswith("whsk_")
    new, old = (await control.get()).http.signing_keys
    assert new.public_key != old.public_key
    request = await sent(control, receiver)
    for key in (new, old):
        assert has_v1a(request, key.public_key)
        assert the_kit_accepts(request, key.public_key)

    await control.rotate(overlap=Duration())
    (newest,) = (await control.get()).http.signing_keys
    request = await sent(control, receiver)
    assert has_v1a(request, newest.public_key)
    assert not any(has_v1a(request, key.public_key) for key in (new, old))


async def test_during_a_rotation_either_shared_secret_verifies(
    control: Control, receiver: Receiver
) -> None:
    old = (await control.create(orders(http=target(receiver)))).signing_secret
    new = (await control.rotate(overlap=Duration(seconds=60))).signing_secret
    request = await sent(control, receiver)
    assert has_v1(request, old)
    assert has_v1(request, new)
    await control.rotate(overlap=Duration())
    request = await sent(control, receiver)
    assert not has_v1(request, old)
    assert not has_v1(request, new)


@pytest.mark.parametrize("imported", ["", ED25519_SECRET], ids=["made", "imported"])
async def test_rotation_to_another_scheme_signs_with_both_during_the_overlap(
    control: Control, receiver: Receiver, imported: str
) -> None:
    old = (await control.create(orders(http=target(receiver)))).signing_secret
    await control.rotate(
        signature_scheme=ED25519, signing_secret=imported, overlap=Duration(seconds=60)
    )
    seen = (await control.get()).http
    assert seen.signature_scheme == ED25519
    assert [key.scheme for key in seen.signing_keys] == [ED25519, HMAC]
    public_key = seen.signing_keys[0].public_key
    request = await sent(control, receiver)
    assert has_v1(request, old)
    assert has_v1a(request, public_key)
    assert the_kit_accepts(request, old)
    assert the_kit_accepts(request, public_key)

    back = await control.rotate(signature_scheme=HMAC, overlap=Duration())
    assert (await control.get()).http.signature_scheme == HMAC
    assert has_v1(await sent(control, receiver), back.signing_secret)


async def test_a_rotation_without_a_scheme_keeps_the_current_one(control: Control) -> None:
    await control.create(orders(http=HttpTarget(url="https://a.b/", signature_scheme=ED25519)))
    assert (await control.rotate()).signing_secret.startswith("whsk_")


async def test_an_update_does_not_change_the_scheme(control: Control) -> None:
    before = (await control.create()).subscription
    wanted = orders(http=HttpTarget(url="https://a.b/", signature_scheme=ED25519))
    for paths in ([], ["*"], ["http"], ["http.signature_scheme"]):
        found = await refusal(control.update(wanted, paths))
        assert found.violations == {"subscription.http.signature_scheme": "FIELD_IMMUTABLE"}
    assert await control.get() == before
    wanted.http.signature_scheme = HMAC
    assert (await control.update(wanted, ["*"])).http.url == "https://a.b/"


async def test_update_without_a_scheme_keeps_it(control: Control) -> None:
    await control.create(orders(http=HttpTarget(url="https://a.b/", signature_scheme=ED25519)))
    for paths in ([], ["*"], ["http.signature_scheme"]):
        assert (await control.update(orders(), paths)).http.signature_scheme == ED25519


@pytest.mark.parametrize(
    "scheme, secret",
    [(ED25519, HMAC_SECRET), (HMAC, ED25519_SECRET), (0, ED25519_SECRET), (ED25519, "whsk_AAAA")],
)
async def test_a_secret_of_another_scheme_is_refused(
    control: Control, scheme: int, secret: str
) -> None:
    created = orders(http=HttpTarget(url="https://a.b/", signature_scheme=scheme))  # type: ignore[arg-type]  # a number of the enum
    expected = {"signing_secret": "SIGNING_SECRET_INVALID"}
    found = await refusal(control.create(created, signing_secret=secret))
    assert found.violations == expected
    await control.create()
    found = await refusal(control.rotate(signature_scheme=scheme, signing_secret=secret))
    assert found.violations == expected
    assert secret[5:] not in str(found)


async def test_unknown_scheme_is_refused(control: Control) -> None:
    await control.create()
    found = await refusal(control.rotate(signature_scheme=7))
    assert set(found.violations) == {"signature_scheme"}


def test_signature_matches_the_vector_of_the_standard() -> None:
    """The verifiers also reject a changed request."""
    vector = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    signature = (
        "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+"
        "m7TBAg=="
    )
    assert signed_v1a(ED25519_PUBLIC, *vector, signature)
    assert not signed_v1a(ED25519_PUBLIC, vector[0], "1614265331", vector[2], signature)
