"""Verification of webhooks: whether a request comes from the sender and is recent.

Standard Webhooks 1.0.0 (standardwebhooks.com). The headers `webhook-id`, `webhook-timestamp` and
`webhook-signature` are checked against the raw body: the signed content is `id.timestamp.body`. One
valid signature (there are several during a rotation) for any of the receiver's secrets is enough.

Standard library only for `v1` (HMAC-SHA256, `whsec_…`); `v1a` (ed25519, `whpk_…`) needs the package
`cryptography`. Imports neither gRPC nor protobuf.

    try:
        webhook = hookline.webhook.verify(request.headers, request.body, "whsec_…")
    except WebhookVerificationError:
        return 401
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol, runtime_checkable

from hookline.tracing import TRACEPARENT, continuing

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"

DEFAULT_TOLERANCE_S: Final = 300.0
"""The maximum difference between a request's timestamp and the receiver's clock, in seconds."""

_SECRET_BYTES: Final = range(24, 65)
_PUBLIC_KEY_BYTES: Final = 32
# No dot: otherwise `id.timestamp.body` could be split in two ways, and a body could be forged.
_ID = re.compile(r"[!-\-/-~]{1,255}", re.ASCII)
_TIMESTAMP = re.compile(r"[0-9]{1,11}", re.ASCII)

_Check = Callable[[bytes, bytes], bool]


@runtime_checkable
class HeaderItems(Protocol):
    """A header mapping of any framework: yields pairs, a repeated header several times."""

    def items(self) -> Iterable[tuple[str, str]]:
        """Return all headers, in order."""


Headers = HeaderItems | Iterable[tuple[str, str]] | Iterable[tuple[bytes, bytes]]
"""Headers as a mapping of any framework, or as pairs of text or of bytes."""


class WebhookVerificationError(Exception):
    """The request is not authentic. Respond with 400 or 401, and do not use its body."""


class HeaderMissingError(WebhookVerificationError):
    """One of the three headers is missing."""


class HeaderMalformedError(WebhookVerificationError):
    """A header is repeated or malformed."""


class TimestampError(WebhookVerificationError):
    """The timestamp is outside the tolerance: a replayed request, or a wrong clock."""


class SignatureMismatchError(WebhookVerificationError):
    """No signature is valid: the secret is wrong, or the body was changed."""


class SecretError(ValueError):
    """The receiver's secret is malformed: an error of its configuration, not of the request."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A verified request."""

    id: str
    """The id of the event, the same for every attempt: use it for deduplication."""
    timestamp: datetime
    """When this attempt was sent, in UTC."""
    body: bytes
    """The signed bytes."""

    def json(self) -> Any:  # noqa: ANN401 - any JSON value
        """Parse the body as JSON."""
        return json.loads(self.body)


class Verifier:
    """Verifies requests with secrets that are parsed once, for receivers of many requests."""

    def __init__(
        self, secrets: str | Iterable[str], *, tolerance_s: float = DEFAULT_TOLERANCE_S
    ) -> None:
        """`secrets`: one or several of `whsec_…` and `whpk_…`; raises SecretError if malformed."""
        given = [secrets] if isinstance(secrets, str) else secrets
        self._checks = [_check_of(secret) for secret in given]
        if not self._checks:
            raise SecretError("`secrets` is empty: at least one secret is required")
        self._tolerance_s = tolerance_s

    def verify(self, headers: Headers, body: bytes | str, *, now: float | None = None) -> Webhook:
        """Return the verified request; raise `WebhookVerificationError`. See `verify`."""
        message_id, timestamp, signatures = _read_headers(headers)
        age_s = (time.time() if now is None else now) - int(timestamp)
        if abs(age_s) > self._tolerance_s:
            where = "old" if age_s > 0 else "in the future"
            raise TimestampError(
                f"the request is {abs(age_s):.0f} s {where}, and only"
                f" {self._tolerance_s:.0f} s are allowed"
            )
        content = _bytes_of(body)
        signed = f"{message_id}.{timestamp}.".encode("ascii") + content
        # Every pair is checked, so that the time does not depend on which signature is valid.
        fits = [
            check(signed, signature)
            for scheme, check in self._checks
            for version, signature in signatures
            if scheme == version
        ]
        if not any(fits):
            raise SignatureMismatchError(
                "no signature of the request is valid for the given secrets"
            )
        return Webhook(message_id, datetime.fromtimestamp(int(timestamp), UTC), content)


def verify(
    headers: Headers,
    body: bytes | str,
    secrets: str | Iterable[str],
    *,
    tolerance_s: float = DEFAULT_TOLERANCE_S,
    now: float | None = None,
) -> Webhook:
    """Return the verified request; raise `WebhookVerificationError` if it is not authentic.

    `headers`: in any case, as a mapping or as pairs. `body`: the raw body, before any parsing.
    `secrets`: one or several of `whsec_…` and `whpk_…`; raises SecretError if one is malformed.
    `now`: Unix time in seconds, by default the current time.
    """
    return Verifier(secrets, tolerance_s=tolerance_s).verify(headers, body, now=now)


@contextmanager
def receiving(headers: Headers, *, name: str = "webhook") -> Iterator[None]:
    """Run the block in a CONSUMER span that continues the trace in the request's `traceparent`.

        with hookline.webhook.receiving(request.headers):
            webhook = verifier.verify(request.headers, request.body)
            ...

    Does nothing without OpenTelemetry; starts a new trace if the request has none. An exception
    marks the span as failed and is raised again.
    """
    found = {TRACEPARENT: "", ID_HEADER: ""}
    for key, value in _pairs(headers):
        if key in found:
            found[key] = value
    with continuing(found[TRACEPARENT], found[ID_HEADER], name):
        yield


def _read_headers(headers: Headers) -> tuple[str, str, list[tuple[str, bytes]]]:
    """Return the id, the digits of the timestamp, and the signatures with their versions."""
    found: dict[str, list[str]] = {ID_HEADER: [], TIMESTAMP_HEADER: [], SIGNATURE_HEADER: []}
    for name, value in _pairs(headers):
        if name in found:
            found[name].append(value.strip(" \t"))
    for name, values in found.items():
        if not any(values):
            raise HeaderMissingError(f"the request has no {name}")
    for name in (ID_HEADER, TIMESTAMP_HEADER):
        if len(found[name]) > 1:
            raise HeaderMalformedError(f"the request has {name} more than once")
    message_id, timestamp = found[ID_HEADER][0], found[TIMESTAMP_HEADER][0]
    if not _ID.fullmatch(message_id):
        raise HeaderMalformedError(
            f"{ID_HEADER} must be 1 to 255 visible ASCII characters without '.'"
        )
    if not _TIMESTAMP.fullmatch(timestamp):
        raise HeaderMalformedError(f"{TIMESTAMP_HEADER} must be a Unix time in seconds")
    return message_id, timestamp, list(_signatures(found[SIGNATURE_HEADER]))


def _pairs(headers: Headers) -> Iterator[tuple[str, str]]:
    """Names in lower case, and values, as text."""
    for name, value in headers.items() if isinstance(headers, HeaderItems) else headers:
        yield _text(name).lower(), _text(value)


def _signatures(values: Iterable[str]) -> Iterable[tuple[str, bytes]]:
    """Yield the well-formed signatures; others can belong to future versions."""
    for token in " ".join(values).split():
        version, comma, encoded = token.partition(",")
        signature = _base64(encoded)
        if comma and signature is not None:
            yield version, signature


def _bytes_of(body: bytes | str) -> bytes:
    """Return the received bytes, including those that a framework could not decode."""
    if not isinstance(body, str):
        return bytes(body)
    try:
        return body.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise SignatureMismatchError(
            "the body contains surrogates that no request can contain: pass the raw bytes"
        ) from None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _check_of(secret: str) -> tuple[str, _Check]:
    """Return the signature version of a secret, and the check."""
    prefix, _, encoded = secret.strip().partition("_")
    key = _base64(encoded)
    if prefix == "whsec" and key is not None and len(key) in _SECRET_BYTES:
        return "v1", lambda signed, given: hmac.compare_digest(
            hmac.digest(key, signed, hashlib.sha256), given
        )
    if prefix == "whpk" and key is not None and len(key) == _PUBLIC_KEY_BYTES:
        return "v1a", _ed25519(key)
    if prefix == "whsk":
        raise SecretError("whsk_… is the private key of the sender: use the public key, whpk_…")
    raise SecretError(
        f"a secret is whsec_ and the base64 of {_SECRET_BYTES[0]} to {_SECRET_BYTES[-1]} bytes, "
        f"or whpk_ and that of {_PUBLIC_KEY_BYTES}"
    )


def _ed25519(key: bytes) -> _Check:
    try:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - optional
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
            Ed25519PublicKey,
        )
    except ImportError:
        raise SecretError(
            "whpk_… needs the package cryptography: install hookline[ed25519]"
        ) from None
    public_key = Ed25519PublicKey.from_public_bytes(key)

    def check(signed: bytes, given: bytes) -> bool:
        try:
            public_key.verify(given, signed)
        except InvalidSignature:
            return False
        return True

    return check
