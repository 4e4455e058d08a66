"""Signing secrets in requests: imported, or made where none is.

No violation carries any part of a secret.
"""

from __future__ import annotations

from hookline_service.domain.errors import Reason, Violation
from hookline_service.domain.subscription import SignatureScheme
from hookline_service.store.subscriptions import NewSecret
from hookline_service.targets.http.signature import (
    InvalidSecretError,
    generate_secret,
    parse_secret,
)


def secret_in(
    text: str, scheme: SignatureScheme | None, field: str, violations: list[Violation]
) -> NewSecret:
    """The secret to store: the one in the request or, where that is empty, a new one.

    `scheme` None: any, for nobody knows yet which it should be.
    """
    secret = generate_secret(scheme or SignatureScheme.HMAC_SHA256)
    if text:
        try:
            secret = parse_secret(text)
        except InvalidSecretError as error:
            violations.append(Violation(field, str(error), Reason.SIGNING_SECRET_INVALID))
    if scheme is not None and secret.scheme is not scheme:
        violations.append(
            Violation(
                field,
                f"must be a secret of the signature scheme {scheme}",
                Reason.SIGNING_SECRET_INVALID,
            )
        )
    return NewSecret(secret.scheme, secret.text, secret.public_key)
