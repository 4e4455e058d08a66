"""Handshakes: ask a target for its consent before a subscription with `require_handshake` uses it.

The target is asked when the subscription is created, when `require_handshake` is turned on, and
when its URLs change. The change is written only after the target's consent.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from hookline_service.domain.errors import (
    AbortedError,
    FailedPreconditionError,
    Reason,
    UnavailableError,
)
from hookline_service.domain.subscription import HttpTarget, Subscription
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.routes import Reader, load_routes
from hookline_service.store.subscription_secrets import NO_CERTIFICATE, UNCHANGED, TargetSecrets
from hookline_service.targets.http.handshake import (
    Consent,
    ConsentRefusedError,
    Handshake,
    HandshakeUnavailableError,
)
from hookline_service.targets.http.sender import prepare_endpoints
from hookline_service.targets.http.tls import ClientIdentity

_MINUTE_S = 60


def needs_handshake(seen: HttpTarget | None, wanted: HttpTarget) -> bool:
    """Whether a change needs the target's consent; `seen` is None for a new subscription."""
    if not wanted.require_handshake:
        return False
    return seen is None or not seen.require_handshake or seen.urls != wanted.urls


def with_consent(
    seen: Subscription, wanted: Subscription, consented: HttpTarget | None
) -> Subscription:
    """Return the updated subscription; `consented` is the target that was asked, with its rate.

    Raises `AbortedError` if another call changed the URLs meanwhile, so that others must be asked.
    """
    if not needs_handshake(seen.target, wanted.target):
        return wanted
    if consented is None or consented.urls != wanted.target.urls:
        raise AbortedError(
            "another call changed the target's URLs during the handshake: repeat the call",
            Reason.CONCURRENT_CHANGE,
        )
    allowed = consented.allowed_per_minute
    return replace(wanted, target=replace(wanted.target, allowed_per_minute=allowed))


class TargetHandshakes:
    """Performs handshakes with the headers and certificates of subscriptions."""

    def __init__(
        self, reader: Reader, secrets: TenantSecrets, handshake: Handshake, *, user_agent: str
    ) -> None:
        self._reader = reader
        self._secrets = secrets
        self._handshake = handshake
        self._user_agent = user_agent

    async def ask(
        self, wanted: Subscription, given: TargetSecrets, uid: UUID | None = None
    ) -> Consent:
        """Ask the target of a subscription that is about to be written.

        `uid` is that of an existing subscription, whose stored secrets are used unless `given`
        replaces them. Raises `FailedPreconditionError` with the response if the target does not
        consent, and `UnavailableError` after an internal error.
        """
        target, limits = wanted.target, wanted.limits
        kept = UNCHANGED if uid is None else await self._kept(uid, target)
        headers = kept.headers if given.headers is None else given.headers
        certificate = kept.certificate if given.certificate is None else given.certificate
        if certificate == NO_CERTIFICATE:
            certificate = None
        endpoints = prepare_endpoints(
            target,
            user_agent=self._user_agent,
            tenant_id=wanted.tenant_id,
            secret_headers=headers,
            identity=ClientIdentity(*certificate) if certificate else None,
        )
        rate = limits.max_per_second
        per_minute = None if rate is None else max(1, round(rate * _MINUTE_S))
        try:
            return await self._handshake.ask(endpoints, target.timeout_s, per_minute)
        except ConsentRefusedError as refusal:
            metadata = {"url": refusal.url}
            if refusal.http_status is not None:
                metadata["http_status"] = str(refusal.http_status)
            raise FailedPreconditionError(
                f"the target does not consent: {refusal}",
                Reason.HANDSHAKE_REFUSED,
                metadata=metadata,
            ) from None
        except HandshakeUnavailableError as fault:
            raise UnavailableError(
                f"the target was not asked: {fault}", Reason.INTERNAL, retry_after_s=1.0
            ) from None

    async def _kept(self, uid: UUID, wanted: HttpTarget) -> TargetSecrets:
        """Return the stored secrets if they were given for every URL that is asked.

        They are read together with their URLs, since another call may change both.
        """
        for route in await load_routes(self._reader, self._secrets, [uid]):
            if not route.secret_fault:
                is_theirs = wanted.is_within(route.subscription.target)
                return route.target_secrets if is_theirs else UNCHANGED
            raise UnavailableError(
                "the target was not asked: a secret of its subscription cannot be opened",
                Reason.INTERNAL,
            )
        return UNCHANGED
