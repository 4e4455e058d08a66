"""Whether a target consents to be sent to, where its subscription says that it shall be asked.

Asked when the subscription is created, and again when it begins to ask or its URLs change: before
the change is written, which a target that does not consent prevents.
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


def is_to_be_asked(seen: HttpTarget | None, wanted: HttpTarget) -> bool:
    """Whether a change needs the target's consent; `seen` None: it is new."""
    if not wanted.require_handshake:
        return False
    return seen is None or not seen.require_handshake or seen.urls != wanted.urls


def with_consent(
    seen: Subscription, wanted: Subscription, consented: HttpTarget | None
) -> Subscription:
    """What an update comes to: `consented` is the target that was asked, with what it allows.

    `AbortedError`: somebody changed the subscription meanwhile, so that others are to be asked.
    """
    if not is_to_be_asked(seen.target, wanted.target):
        return wanted
    if consented is None or consented.urls != wanted.target.urls:
        raise AbortedError(
            "the target's URLs were changed by others while it was asked: repeat",
            Reason.CONCURRENT_CHANGE,
        )
    allowed = consented.allowed_per_minute
    return replace(wanted, target=replace(wanted.target, allowed_per_minute=allowed))


class TargetHandshakes:
    """Asks targets, as whom and with what their subscriptions say."""

    def __init__(
        self, reader: Reader, secrets: TenantSecrets, handshake: Handshake, *, user_agent: str
    ) -> None:
        self._reader = reader
        self._secrets = secrets
        self._handshake = handshake
        self._user_agent = user_agent

    async def ask(
        self, wanted: Subscription, told: TargetSecrets, uid: UUID | None = None
    ) -> Consent:
        """Ask the target of a subscription as it is to be; `uid` where there is one already.

        Raises `FailedPreconditionError` where it does not consent, with what it answered, and
        `UnavailableError` where the fault is ours.
        """
        target, limits = wanted.target, wanted.limits
        kept = UNCHANGED if uid is None else await self._kept(uid, target)
        headers = kept.headers if told.headers is None else told.headers
        certificate = kept.certificate if told.certificate is None else told.certificate
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
        """The stored secrets, where they were given for every URL that is asked.

        Read together with the URLs they were given for: others may change both meanwhile.
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
