"""Subscriptions as the API keeps them, for tests of what the data path makes of their changes."""

from uuid import UUID

from hookline_service.domain.subscription import (
    HttpTarget,
    RetryPolicy,
    SignatureScheme,
    Subscription,
)
from hookline_service.store.subscriptions import NewSecret, Subscriptions
from tests.pipeline.rig import SECRET


async def create(subscriptions: Subscriptions, name: str, url: str, *patterns: str) -> UUID:
    """A subscription of acme's, as the API makes one; its uid."""
    draft = Subscription(
        tenant_id="acme",
        subscription_id=name,
        uid=UUID(int=0),
        event_types=patterns or ("*",),
        target=HttpTarget(url=url),
        retry_policy=RetryPolicy(schedule_s=(0.0, 60.0)),
    )
    secret = NewSecret(SignatureScheme.HMAC_SHA256, SECRET)
    return (await subscriptions.create(draft, secret, max_of_tenant=100)).uid
