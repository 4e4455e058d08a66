"""`hookline.webhook` against the standard's vectors, an independent signer, and forgeries."""

import base64
import email.message
import hmac
import subprocess
import sys
from datetime import UTC, datetime

import pytest
import standardwebhooks

from hookline import webhook
from hookline.webhook import (
    HeaderMalformedError,
    HeaderMissingError,
    SecretError,
    SignatureMismatchError,
    TimestampError,
    WebhookVerificationError,
    verify,
)

# The vectors of Standard Webhooks 1.0.0.
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
SENT_AT = 1614265330
BODY = b'{"test": 2432232314}'
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
V1 = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
PUBLIC_KEY = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
V1A = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
OTHER_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def headers(**changes: str | None) -> dict[str, str]:
    """The vector's headers, with some changed (`signature="…"`) or left out (None)."""
    values = {"id": ID, "timestamp": str(SENT_AT), "signature": V1} | changes
    return {f"webhook-{name}": value for name, value in values.items() if value is not None}


def check(
    given: webhook.Headers, secrets: str | list[str] = SECRET, body: bytes | str = BODY
) -> webhook.Webhook:
    return verify(given, body, secrets, now=SENT_AT)


@pytest.mark.parametrize("secrets, signature", [(SECRET, V1), (PUBLIC_KEY, V1A)], ids=["v1", "v1a"])
def test_vectors_of_the_standard_verify(secrets: str, signature: str) -> None:
    verified = check(headers(signature=signature), secrets)
    assert verified.id == ID
    assert verified.timestamp == datetime.fromtimestamp(SENT_AT, UTC)
    assert verified.body == BODY
    assert verified.json() == {"test": 2432232314}


def test_signatures_of_an_independent_signer_verify() -> None:
    now = datetime.now(UTC)
    signature = standardwebhooks.Webhook(OTHER_SECRET).sign("evt_1", now, '{"žluťoučký":1}')
    given = headers(id="evt_1", timestamp=str(int(now.timestamp())), signature=signature)
    assert verify(given, '{"žluťoučký":1}', OTHER_SECRET).json() == {"žluťoučký": 1}
    assert verify(given, '{"žluťoučký":1}'.encode(), [SECRET, OTHER_SECRET]).id == "evt_1"


def test_a_body_decoded_with_surrogateescape_verifies() -> None:
    body = b'{"name":"\xff"}'
    mac = hmac.digest(bytes(range(32)), f"evt_1.{SENT_AT}.".encode() + body, "sha256")
    given = headers(id="evt_1", signature=f"v1,{base64.b64encode(mac).decode()}")
    decoded = body.decode("utf-8", "surrogateescape")
    assert verify(given, decoded, OTHER_SECRET, now=SENT_AT).body == body


def as_message(given: dict[str, str]) -> webhook.Headers:
    message = email.message.Message()
    for name, value in given.items():
        message[name] = value
    return message


@pytest.mark.parametrize(
    "given",
    [
        {name.upper(): value for name, value in headers().items()},
        list(headers().items()),
        [(name.title().encode(), value.encode()) for name, value in headers().items()],
        as_message(headers()),
        {**headers(), "host": "receiver.example", "x-webhook-id": "another"},
        headers(signature=f"v1,AAAA v2,{V1[3:]} {V1} v1,no-base64!"),
        [*headers(signature="v1,AAAA").items(), ("Webhook-Signature", V1)],
    ],
    ids=["upper", "pairs", "bytes", "message", "others", "several", "repeated"],
)
def test_headers_are_accepted_in_every_form(given: webhook.Headers) -> None:
    assert check(given).id == ID


@pytest.mark.parametrize("name", ["id", "timestamp", "signature"])
@pytest.mark.parametrize("value", [None, "", " "], ids=["missing", "empty", "blank"])
def test_each_header_is_required(name: str, value: str | None) -> None:
    with pytest.raises(HeaderMissingError, match=f"webhook-{name}"):
        check(headers(**{name: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"timestamp": "1614265330.0"},
        {"timestamp": "+1614265330"},
        {"timestamp": "1_614_265_330"},
        {"timestamp": "١٦١٤٢٦٥٣٣٠"},
        {"timestamp": "yesterday"},
        {"timestamp": "9" * 400},
        {"id": "msg.1"},
        {"id": "msg 1"},
        {"id": "msg_\x00"},
        {"id": "zpráva"},
        {"id": "m" * 256},
    ],
    ids=str,
)
def test_malformed_id_and_timestamp_are_rejected(changes: dict[str, str]) -> None:
    with pytest.raises(HeaderMalformedError):
        check(headers(**changes))


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp"])
def test_a_repeated_header_is_rejected(name: str) -> None:
    with pytest.raises(HeaderMalformedError, match="more than once"):
        check([*headers().items(), (name.title(), headers()[name])])


@pytest.mark.parametrize("age_s", [300, -300])
def test_the_default_tolerance_is_five_minutes(age_s: int) -> None:
    assert verify(headers(), BODY, SECRET, now=SENT_AT + age_s).id == ID
    with pytest.raises(TimestampError):
        verify(headers(), BODY, SECRET, now=SENT_AT + age_s + (1 if age_s > 0 else -1))


def test_the_tolerance_can_be_configured() -> None:
    assert verify(headers(), BODY, SECRET, now=SENT_AT + 3600, tolerance_s=3600).id == ID
    with pytest.raises(TimestampError):
        verify(headers(), BODY, SECRET)


@pytest.mark.parametrize(
    "given, body, secrets",
    [
        (headers(), BODY + b" ", SECRET),
        (headers(id="msg_other"), BODY, SECRET),
        (headers(timestamp=str(SENT_AT + 1)), BODY, SECRET),
        (headers(), BODY, OTHER_SECRET),
        (headers(signature="v1," + "A" * 43 + "="), BODY, SECRET),
        (headers(signature=V1.replace("v1,", "")), BODY, SECRET),
        (headers(signature=V1.replace("v1,", "v1a,")), BODY, SECRET),
        (headers(signature="v1,"), BODY, SECRET),
        (headers(signature=V1A), BODY, SECRET),
        (headers(signature=V1), BODY, PUBLIC_KEY),
        (headers(signature="v1a,AAAA"), BODY, PUBLIC_KEY),
        (headers(signature=V1A), BODY + b" ", PUBLIC_KEY),
    ],
)
def test_a_forged_request_is_rejected(given: dict[str, str], body: bytes, secrets: str) -> None:
    with pytest.raises(SignatureMismatchError):
        check(given, secrets, body)


@pytest.mark.parametrize(
    "secrets",
    [
        [],
        "",
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_tooshort",
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS!",
        "whpk_" + base64.b64encode(bytes(31)).decode(),
        "whsk_" + base64.b64encode(bytes(64)).decode(),
    ],
    ids=str,
)
def test_a_malformed_secret_raises_secret_error(secrets: str | list[str]) -> None:
    with pytest.raises(SecretError) as caught:
        check(headers(), secrets)
    assert not isinstance(caught.value, WebhookVerificationError)
    assert not secrets or str(secrets) not in str(caught.value)


def test_a_receiver_loads_neither_grpc_nor_protobuf_nor_cryptography() -> None:
    code = (
        "import sys, hookline.webhook as webhook\n"
        f"webhook.verify({headers()!r}, {BODY!r}, {SECRET!r}, now={SENT_AT})\n"
        "loaded = {'grpc', 'google', 'cryptography'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
