"""Audit drafts of changes of subscriptions.

The new row is computed before the statement runs, because the statement applies only to the version
that was read. Drafts contain no secrets, only public keys.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from hookline_service.domain.audit_view import View, subscription_view
from hookline_service.domain.caller import SERVICE
from hookline_service.domain.names import subscription_name
from hookline_service.domain.subscription import SignatureScheme, Subscription, SubscriptionState
from hookline_service.store.audit import draft
from hookline_service.store.subscription_rows import etag_of, version_of

FIRST_VERSION = 1


def creation(
    new: Subscription, uid: UUID, scheme: SignatureScheme, public_key: str
) -> dict[str, str]:
    """Return the draft for a new subscription and its first signing key."""
    after = subscription_view(replace(new, uid=uid, etag=etag_of(uid, FIRST_VERSION)))
    after["signing_keys"] = [_key_view(scheme, public_key)]
    return _draft(new, None, after)


def change(seen: Subscription, wanted: Subscription) -> dict[str, str]:
    """Return the draft for an update, a pause or a resumption."""
    return _draft(seen, subscription_view(seen), subscription_view(_next(seen, wanted)))


def rotation(
    seen: Subscription, scheme: SignatureScheme, public_key: str, overlap_s: float
) -> dict[str, str]:
    """Return the draft for a new signing secret; only the previous one stays, for the overlap."""
    wanted = replace(seen, target=replace(seen.target, signature_scheme=scheme))
    before, after = subscription_view(seen), subscription_view(_next(seen, wanted))
    after["signing_keys"] = [_key_view(scheme, public_key), *before["signing_keys"][:1]]
    after["overlap_s"] = overlap_s
    return _draft(seen, before, after)


def deletion(seen: Subscription) -> dict[str, str]:
    """Return the draft for a deletion."""
    return _draft(seen, subscription_view(seen), None)


def discard(tenant_id: str, subscription_id: str) -> dict[str, str]:
    """Return the draft for discarded deliveries; the statement adds their number."""
    return draft(subscription_name(tenant_id, subscription_id), tenant_id=tenant_id)


def disabling(disabled: Subscription) -> dict[str, str]:
    """Return the draft for a subscription that the service disables; it was active before."""
    before = subscription_view(disabled)
    before |= {
        "state": SubscriptionState.ACTIVE.value,
        "state_reason": None,
        "state_message": "",
        "etag": etag_of(disabled.uid, version_of(disabled) - 1),
    }
    return draft(
        before["name"],
        tenant_id=disabled.tenant_id,
        before=before,
        after=subscription_view(disabled),
        caller=SERVICE,
        action="DisableSubscription",
    )


def _next(seen: Subscription, wanted: Subscription) -> Subscription:
    return replace(wanted, etag=etag_of(seen.uid, version_of(seen) + 1))


def _key_view(scheme: SignatureScheme, public_key: str) -> View:
    return {"scheme": scheme.value, "public_key": public_key}


def _draft(of: Subscription, before: View | None, after: View | None) -> dict[str, str]:
    name = subscription_name(of.tenant_id, of.subscription_id)
    return draft(name, tenant_id=of.tenant_id, before=before, after=after)
