"""The receiver's side of a webhook: tells whether a request was made by the sender, and just now.

Standard Webhooks 1.0.0 (standardwebhooks.com). The headers `webhook-id`, `webhook-timestamp` and
`webhook-signature` are checked against the raw body: `id.timestamp.body` is what was signed. Of the
signatures (several during a rotation) one suffices, for any of the receiver's secrets.

Standard library only for `v1` (HMAC-SHA256, `whsec_…`); `v1a` (ed25519, `whpk_…`) needs the package
`cryptography`. Knows nothing of gRPC, nor of how the service signs.

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
"""How far a request's timestamp may lie from the receiver's clock, in seconds, either way."""

_SECRET_BYTES: Final = range(24, 65)
_PUBLIC_KEY_BYTES: Final = 32
# No dot: `id.timestamp.body` would read in two ways, and one body could be passed for another.
_ID = re.compile(r"[!-\-/-~]{1,255}", re.ASCII)
_TIMESTAMP = re.compile(r"[0-9]{1,11}", re.ASCII)

_Check = Callable[[bytes, bytes], bool]


@runtime_checkable
class HeaderItems(Protocol):
    """What the headers of every framework have: pairs, a repeated header repeated."""

    def items(self) -> Iterable[tuple[str, str]]:
        """All headers, in order."""


Headers = HeaderItems | Iterable[tuple[str, str]] | Iterable[tuple[bytes, bytes]]
"""Headers as a mapping of any framework, or as pairs of text or of bytes."""


class WebhookVerificationError(Exception):
    """The request is not to be trusted. Answer it with 400 or 401, and do not read its body."""


class HeaderMissingError(WebhookVerificationError):
    """A header of the three is not there."""


class HeaderMalformedError(WebhookVerificationError):
    """A header is there twice, or is not what the standard says."""


class TimestampError(WebhookVerificationError):
    """The request is too old or from the future: a replay, or a clock that is wrong."""


class SignatureMismatchError(WebhookVerificationError):
    """No signature fits: the secret is another's, or the body was changed on the way."""


class SecretError(ValueError):
    """The receiver's own secret is unusable: a mistake of set-up, no fault of the request."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A request that was verified."""

    id: str
    """The same for every attempt of an event: what was seen before need not be done again."""
    timestamp: datetime
    """When this attempt was sent, in UTC."""
    body: bytes
    """Exactly the bytes that were signed."""

    def json(self) -> Any:  # noqa: ANN401 - JSON is what it is
        """The body, parsed."""
        return json.loads(self.body)


class Verifier:
    """Checks requests with secrets that are read once; for receivers that get many."""

    def __init__(
        self, secrets: str | Iterable[str], *, tolerance_s: float = DEFAULT_TOLERANCE_S
    ) -> None:
        """`secrets`: one or several of `whsec_…` and `whpk_…`. SecretError: not usable."""
        given = [secrets] if isinstance(secrets, str) else secrets
        self._checks = [_check_of(secret) for secret in given]
        if not self._checks:
            raise SecretError("there is no secret to verify with")
        self._tolerance_s = tolerance_s

    def verify(self, headers: Headers, body: bytes | str, *, now: float | None = None) -> Webhook:
        """Check a request; returns it, or raises a `WebhookVerificationError`. See `verify`."""
        message_id, timestamp, signatures = _read_headers(headers)
        age_s = (time.time() if now is None else now) - int(timestamp)
        if abs(age_s) > self._tolerance_s:
            where = "old" if age_s > 0 else "in the future"
            raise TimestampError(
                f"the request is {abs(age_s):.0f} s {where}, and only"
                f" {self._tolerance_s:.0f} s are tolerated"
            )
        content = _bytes_of(body)
        signed = f"{message_id}.{timestamp}.".encode("ascii") + content
        # Every pair is tried, so that the time taken does not tell which of them fitted.
        fits = [
            check(signed, signature)
            for scheme, check in self._checks
            for version, signature in signatures
            if scheme == version
        ]
        if not any(fits):
            raise SignatureMismatchError("no signature of the request fits a secret")
        return Webhook(message_id, datetime.fromtimestamp(int(timestamp), UTC), content)


def verify(
    headers: Headers,
    body: bytes | str,
    secrets: str | Iterable[str],
    *,
    tolerance_s: float = DEFAULT_TOLERANCE_S,
    now: float | None = None,
) -> Webhook:
    """Check a request; returns it, or raises a `WebhookVerificationError`.

    `headers` in any casing, as a mapping or as pairs; `body` as it came, before any parsing;
    `secrets` one or several of `whsec_…` and `whpk_…` (SecretError: not usable). `now` is Unix time
    in seconds, by default the clock's.
    """
    return Verifier(secrets, tolerance_s=tolerance_s).verify(headers, body, now=now)


@contextmanager
def receiving(headers: Headers, *, name: str = "webhook") -> Iterator[None]:
    """Continue the sender's trace while inside: a CONSUMER span under the request's `traceparent`.

        with hookline.webhook.receiving(request.headers):
            webhook = verifier.verify(request.headers, request.body)
            ...

    Does nothing without OpenTelemetry; begins a trace where the request carries none. Exceptions
    pass through, and mark the span as failed.
    """
    found = {TRACEPARENT: "", ID_HEADER: ""}
    for key, value in _pairs(headers):
        if key in found:
            found[key] = value
    with continuing(found[TRACEPARENT], found[ID_HEADER], name):
        yield


def _read_headers(headers: Headers) -> tuple[str, str, list[tuple[str, bytes]]]:
    """The id, the timestamp's digits, and the signatures by their version."""
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
            f"{ID_HEADER} is not 1 to 255 visible ASCII characters without '.'"
        )
    if not _TIMESTAMP.fullmatch(timestamp):
        raise HeaderMalformedError(f"{TIMESTAMP_HEADER} is not a number of seconds")
    return message_id, timestamp, list(_signatures(found[SIGNATURE_HEADER]))


def _pairs(headers: Headers) -> Iterator[tuple[str, str]]:
    """Names in lower case, and values, as text."""
    for name, value in headers.items() if isinstance(headers, HeaderItems) else headers:
        yield _text(name).lower(), _text(value)


def _signatures(values: Iterable[str]) -> Iterable[tuple[str, bytes]]:
    """The signatures that can be read; others may be of versions that are yet to come."""
    for token in " ".join(values).split():
        version, comma, encoded = token.partition(",")
        signature = _base64(encoded)
        if comma and signature is not None:
            yield version, signature


def _bytes_of(body: bytes | str) -> bytes:
    """The bytes that came; what a framework could not decode is given back as it was."""
    if not isinstance(body, str):
        return bytes(body)
    try:
        return body.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise SignatureMismatchError("the body is no text that anybody could have sent") from None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _check_of(secret: str) -> tuple[str, _Check]:
    """The version of the signatures that a secret can check, and how."""
    prefix, _, encoded = secret.strip().partition("_")
    key = _base64(encoded)
    if prefix == "whsec" and key is not None and len(key) in _SECRET_BYTES:
        return "v1", lambda signed, given: hmac.compare_digest(
            hmac.digest(key, signed, hashlib.sha256), given
        )
    if prefix == "whpk" and key is not None and len(key) == _PUBLIC_KEY_BYTES:
        return "v1a", _ed25519(key)
    if prefix == "whsk":
        raise SecretError("whsk_… is the sender's private key; a receiver verifies with whpk_…")
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
        raise SecretError("to verify with whpk_… install the package cryptography") from None
    public_key = Ed25519PublicKey.from_public_bytes(key)

    def check(signed: bytes, given: bytes) -> bool:
        try:
            public_key.verify(given, signed)
        except InvalidSignature:
            return False
        return True

    return check
