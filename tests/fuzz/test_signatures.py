"""The receiver's side: only what the sender signed is taken, whatever else comes.

Nothing is raised but the verifier's own errors.
"""

from __future__ import annotations

import base64
import contextlib
from datetime import UTC, datetime

import pytest
import standardwebhooks
from hypothesis import strategies as st

from hookline.webhook import SecretError, Verifier, WebhookVerificationError
from hookline_service.domain.subscription import SignatureScheme
from hookline_service.targets.http.signature import (
    InvalidSecretError,
    Signer,
    SigningSecret,
    generate_secret,
    parse_secret,
)
from tests.fuzz.mutation import edited, fuzz

NOW_S = 1_764_000_000
ID, BODY = "evt_01jdc6cqsyfz8snxvzxvqf9h5b", b'{"type":"order.created","data":{"id":1}}'
HMAC = SigningSecret(SignatureScheme.HMAC_SHA256, bytes(range(32)))
ED25519 = SigningSecret(SignatureScheme.ED25519, bytes(range(1, 33)))
VERIFIER = Verifier([HMAC.text, ED25519.public_key])
SIGNED = Signer([HMAC, ED25519]).sign(ID, NOW_S, BODY)
SIGNATURES = [
    SIGNED, *SIGNED.split(" "), f"{SIGNED} v2,AAAA", "v1,", "v1", ",", "v1,====", "v1a,AAAA",
    "", "v1 v1a",
]  # fmt: skip
SIGNATURE_TOKENS = [
    "v1,",
    "v1a,",
    "v2,",
    ",",
    " ",
    "=",
    "A",
    "+",
    "/",
    "\n",
    "\x00",
    "\u0661",
    "\ud800",
]
Field = st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "Webhook-Id"])


def is_taken(message_id: str, timestamp: str, signature: str, body: bytes) -> bool:
    """Whether a request is; nothing else than the verifier's own error may come of it."""
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature,
    }
    try:
        webhook = VERIFIER.verify(headers, body, now=NOW_S)
    except WebhookVerificationError:
        return False
    assert (webhook.id, webhook.body) == (message_id.strip(" \t"), body)
    return True


@fuzz({"signature": SIGNATURES}, signature=edited(SIGNATURES, SIGNATURE_TOKENS))
def test_only_a_request_with_a_whole_signature_is_accepted(signature: str) -> None:
    taken = is_taken(ID, str(NOW_S), signature, BODY)
    assert taken == bool(decoded(SIGNED) & decoded(signature))


def decoded(signature: str) -> set[tuple[str, bytes]]:
    """Versions and bytes; base64 has bits to spare at its end, so that their text may differ."""
    found = set()
    for token in signature.split():
        version, _, encoded = token.partition(",")
        with contextlib.suppress(ValueError):
            found.add((version, base64.b64decode(encoded, validate=True)))
    return found


@fuzz(
    message_id=edited([ID], [".", "evt_", " ", "\t", "\n", "\x00", "\ud800", "a" * 256]),
    timestamp=edited([str(NOW_S)], ["0", " ", "+", "-", "_", ".", "e", "\u0661", "\n", "9" * 12]),
    body=edited([BODY], [b"{", b"}", b".", b"\n", b"\x00", b"\xff"]),
)
def test_changed_request_is_rejected(message_id: str, timestamp: str, body: bytes) -> None:
    stripped = (message_id.strip(" \t"), timestamp.strip(" \t"), body)
    assert is_taken(message_id, timestamp, SIGNED, body) == (stripped == (ID, str(NOW_S), BODY))


@fuzz(
    headers=st.lists(
        st.tuples(
            Field | st.text(max_size=20), st.sampled_from([ID, str(NOW_S), SIGNED]) | st.text()
        ),
        max_size=6,
    ),
    body=st.text(alphabet=st.characters()) | st.binary(),
)
def test_arbitrary_headers_and_body_raise_only_the_verifiers_errors(
    headers: list[tuple[str, str]], body: str | bytes
) -> None:
    with contextlib.suppress(WebhookVerificationError):
        VERIFIER.verify(headers, body, now=NOW_S)


@fuzz({"body": ["\ud800", "{}\udcff"]}, body=st.text(alphabet=st.characters()))
def test_body_decoded_to_text_raises_only_the_verifiers_errors(body: str) -> None:
    headers = {"webhook-id": ID, "webhook-timestamp": str(NOW_S), "webhook-signature": SIGNED}
    with pytest.raises(WebhookVerificationError):
        VERIFIER.verify(headers, body, now=NOW_S)


@fuzz(
    key=st.binary(min_size=24, max_size=64),
    body=st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    touched=st.booleans(),
)
def test_reference_library_accepts_and_rejects_the_same(
    key: bytes, body: str, *, touched: bool
) -> None:
    secret = SigningSecret(SignatureScheme.HMAC_SHA256, key)
    now = datetime.now(UTC)
    signature = standardwebhooks.Webhook(secret.text).sign(ID, now, body)
    headers = {
        "webhook-id": ID,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
    given_body = f"{body} " if touched else body
    theirs = ours = True
    try:
        standardwebhooks.Webhook(secret.text).verify(given_body, headers)
    except standardwebhooks.WebhookVerificationError:
        theirs = False
    except ValueError:
        pass  # it reads the body as JSON once the signature fits
    try:
        Verifier(secret.text).verify(headers, given_body)
    except WebhookVerificationError:
        ours = False
    assert ours == theirs == (not touched)


SECRETS = [HMAC.text, ED25519.text, ED25519.public_key, "whsec_", "whsk_", "whpk_"]


@fuzz(
    {"text": SECRETS},
    text=edited(
        SECRETS, ["whsec_", "whsk_", "whpk_", "=", "A", "_", " ", "\n", "\u0661", "\ud800"]
    ),
)
def test_secret_is_parsed_or_rejected_without_being_shown(text: str) -> None:
    for read, refused in ((parse_secret, InvalidSecretError), (Verifier, SecretError)):
        try:
            shown = repr(read(text))
        except refused as error:
            shown = str(error)
        encoded = text.partition("_")[2].strip()
        assert len(encoded) < 12 or encoded not in shown


@fuzz(scheme=st.sampled_from(SignatureScheme), number=st.integers())
def test_generated_secret_can_be_imported(scheme: SignatureScheme, number: int) -> None:
    secret = generate_secret(scheme, lambda size: (number % (1 << 256)).to_bytes(32)[:size])
    assert parse_secret(secret.text) == secret
