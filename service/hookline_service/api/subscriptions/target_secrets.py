"""Secrets of a target in requests: header values, and a client certificate with its key.

Input-only fields cannot be read back, so an empty one leaves the stored secret unchanged: a
resource that was read can be sent back in an update, also with `*`. Only a path of `update_mask`
that names the field itself removes it. No violation contains any part of a secret.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from hookline.v1 import target_pb2
from hookline_service.api.conversion.update_mask import names_leaf
from hookline_service.api.conversion.values import timestamp_of
from hookline_service.domain.errors import Reason, Violation
from hookline_service.domain.subscription import ClientCertificate, HttpTarget
from hookline_service.domain.target import check_headers, size_of_headers
from hookline_service.store.subscription_secrets import (
    NO_CERTIFICATE,
    UNCHANGED,
    CertificatePem,
    TargetSecrets,
)
from hookline_service.targets.http.tls import (
    ClientIdentity,
    InvalidCertificateError,
    read_client_certificate,
)

SECRET_HEADERS: Final = "http.secret_headers"  # noqa: S105 - a field's name
CLIENT_CERTIFICATE: Final = "http.client_certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedSecrets:
    """The secrets in a request, and the public part of the certificate."""

    stored: TargetSecrets = UNCHANGED
    certificate: ClientCertificate | None = None

    def applied_to(self, target: HttpTarget) -> HttpTarget:
        """Return the target with the names and sizes of the secrets."""
        headers = self.stored.headers
        if headers is not None:
            names, size = tuple(sorted(headers)), size_of_headers(headers)
            target = replace(target, secret_header_names=names, secret_header_bytes=size)
        if self.stored.certificate is not None:
            target = replace(target, client_certificate=self.certificate)
        return target


def requested_secrets_in(
    http: target_pb2.HttpTarget,
    leaves: frozenset[str],
    paths: Collection[str],
    path: str,
    violations: list[Violation],
) -> RequestedSecrets:
    """Return the secrets in a request; `paths` are those of its update mask."""
    headers: dict[str, str] | None = None
    if SECRET_HEADERS in leaves and (http.secret_headers or names_leaf(paths, SECRET_HEADERS)):
        headers = dict(http.secret_headers)
    pem, shown = None, None
    if CLIENT_CERTIFICATE in leaves:
        given = http.client_certificate
        if given.certificate_chain or given.private_key:
            pem = CertificatePem(given.certificate_chain, given.private_key)
            shown = _certificate_in(pem, f"{path}client_certificate", violations)
        elif not http.HasField("client_certificate") and names_leaf(paths, CLIENT_CERTIFICATE):
            pem = NO_CERTIFICATE
    return RequestedSecrets(
        stored=TargetSecrets(headers=headers, certificate=pem), certificate=shown
    )


def _certificate_in(
    pem: CertificatePem, path: str, violations: list[Violation]
) -> ClientCertificate | None:
    missing = [
        name
        for name, text in (("certificate_chain", pem.chain), ("private_key", pem.private_key))
        if not text
    ]
    if missing:
        violations += [
            Violation(
                f"{path}.{name}",
                "is required: certificate_chain and private_key must be given together",
                Reason.FIELD_REQUIRED,
            )
            for name in missing
        ]
        return None
    try:
        return read_client_certificate(ClientIdentity(*pem), datetime.now(UTC))
    except InvalidCertificateError as error:
        name = "private_key" if error.is_of_key else "certificate_chain"
        violations.append(Violation(f"{path}.{name}", str(error)))
        return None


def check_all_headers(
    seen: HttpTarget, wanted: HttpTarget, requested: RequestedSecrets, path: str
) -> list[Violation]:
    """Return the violations of all headers of a target, including the unchanged ones."""
    secret = requested.stored.headers
    if secret is not None:
        return check_headers(wanted.headers, secret, path)
    return check_headers(
        wanted.headers,
        {},
        path,
        kept_names=seen.secret_header_names,
        kept_bytes=seen.secret_header_bytes,
    )


def check_kept_secrets(
    seen: HttpTarget, wanted: HttpTarget, requested: RequestedSecrets, path: str
) -> list[Violation]:
    """Reject unchanged secrets if a URL is new: otherwise the caller could receive them there."""
    if wanted.is_within(seen):
        return []
    kept = {
        "secret_headers": requested.stored.headers is None and seen.secret_header_names,
        "client_certificate": requested.stored.certificate is None and seen.client_certificate,
    }
    text = (
        "must be given again, or removed by update_mask, if a URL changes: it is sent to that URL"
    )
    return [
        Violation(f"{path}{name}", text, Reason.FIELD_REQUIRED)
        for name, stays in kept.items()
        if stays
    ]


def certificate_message(
    certificate: ClientCertificate | None,
) -> target_pb2.ClientCertificate | None:
    """Return the message of a client certificate, without its key."""
    if certificate is None:
        return None
    return target_pb2.ClientCertificate(
        subject=certificate.subject,
        expire_time=timestamp_of(certificate.expire_time),
        fingerprint=certificate.fingerprint,
    )
