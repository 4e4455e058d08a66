"""SubscriptionService: manages subscriptions, their signing secrets and test events.

A signing secret is returned only by CreateSubscription and RotateSigningSecret. After every change
this node reads the change log immediately; other nodes do so within a second.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import replace
from typing import Any, Final

from grpc.aio import ServicerContext

from hookline.v1 import event_service_pb2, subscription_service_pb2, subscription_service_pb2_grpc
from hookline_service.api.conversion.names import NO_ID, tenant_and_id_in, tenant_id_in
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.conversion.update_mask import etag_in, leaves_in
from hookline_service.api.conversion.values import datetime_in, seconds_between, timestamp_of
from hookline_service.api.deliveries.conversion import attempt_message, delivery_message
from hookline_service.api.events.conversion import EventReader
from hookline_service.api.subscriptions.conversion import (
    HTTP,
    LEAVES,
    PATH,
    VALUES,
    SubscriptionReader,
    check_scheme,
    message_of,
    refuse_unimplemented,
    scheme_in,
    secret_in,
)
from hookline_service.api.subscriptions.target_secrets import requested_secrets_in
from hookline_service.domain.errors import Reason, Violation, invalid
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import check_id
from hookline_service.domain.subscription import HttpTarget, Subscription, matches
from hookline_service.pipeline.actions.target_handshakes import (
    TargetHandshakes,
    needs_handshake,
    with_consent,
)
from hookline_service.pipeline.actions.test_events import TestEvents
from hookline_service.pipeline.coordination.changes import Changes
from hookline_service.store.deliveries import DeliveryStore
from hookline_service.store.subscription_secrets import TargetSecrets
from hookline_service.store.subscriptions import Subscriptions

_Context = ServicerContext[Any, Any]

DEFAULT_OVERLAP_S: Final = 86_400.0
MAX_OVERLAP_S: Final = 30 * 86_400.0

_COLLECTION = "subscriptions"
_GENERATED_ID_BYTES = 10
_ORDERED_IS_IMMUTABLE = (
    "is immutable, because pending deliveries depend on it: create another subscription instead"
)
_BLANK = Subscription(tenant_id="", subscription_id="", uid=NO_ID, target=HttpTarget(url=""))
"""A subscription with all defaults, before the fields of a request are read."""


class SubscriptionServicer(subscription_service_pb2_grpc.SubscriptionServiceServicer):
    """Implements SubscriptionService."""

    def __init__(
        self,
        *,
        subscriptions: Subscriptions,
        deliveries: DeliveryStore,
        changes: Changes,
        test_events: TestEvents,
        target_handshakes: TargetHandshakes,
        reader: SubscriptionReader,
        pages: Pages,
        limits: Limits,
    ) -> None:
        self._subscriptions = subscriptions
        self._deliveries = deliveries
        self._changes = changes
        self._test_events = test_events
        self._target_handshakes = target_handshakes
        self._reader = reader
        self._events = EventReader(limits)
        self._pages = pages
        self._limits = limits

    async def CreateSubscription(
        self, request: subscription_service_pb2.CreateSubscriptionRequest, context: _Context
    ) -> subscription_service_pb2.CreateSubscriptionResponse:
        """Create a subscription and return it with its signing secret."""
        del context
        violations: list[Violation] = []
        tenant_id = tenant_id_in(request.tenant, violations)
        subscription_id = request.subscription_id or _generated_id()
        if problem := check_id(subscription_id):
            violations.append(Violation("subscription_id", problem))
        leaves = frozenset(LEAVES)
        new = request.subscription
        requested = requested_secrets_in(new.http, leaves, (), HTTP, violations)
        draft = self._reader.read(new, leaves, _BLANK, requested, violations)
        secret = secret_in(
            request.signing_secret, draft.target.signature_scheme, "signing_secret", violations
        )
        if violations:
            raise invalid(violations)
        refuse_unimplemented(new, leaves)
        draft = await self._consented(None, draft, requested.stored)
        created = await self._subscriptions.create(
            replace(draft, tenant_id=tenant_id, subscription_id=subscription_id),
            secret,
            requested.stored,
            max_of_tenant=self._limits.max_subscriptions_per_tenant,
        )
        self._changes.poke()
        return subscription_service_pb2.CreateSubscriptionResponse(
            subscription=message_of(created), signing_secret=secret.text
        )

    async def GetSubscription(
        self, request: subscription_service_pb2.GetSubscriptionRequest, context: _Context
    ) -> subscription_service_pb2.GetSubscriptionResponse:
        """Return one subscription."""
        del context
        found = await self._subscriptions.get(*_named(request.name, across=True))
        return subscription_service_pb2.GetSubscriptionResponse(subscription=message_of(found))

    async def ListSubscriptions(
        self, request: subscription_service_pb2.ListSubscriptionsRequest, context: _Context
    ) -> subscription_service_pb2.ListSubscriptionsResponse:
        """List a tenant's subscriptions, newest first."""
        del context
        violations: list[Violation] = []
        tenant_id = tenant_id_in(request.tenant, violations, across=True)
        binding = ("ListSubscriptions", tenant_id)
        page = self._pages.requested(request, binding, violations)
        found = await self._subscriptions.list_page(
            tenant_id, before=page.before, limit=page.size + 1
        )
        messages = [message_of(subscription) for subscription in found[: page.size]]
        kept, token = self._pages.finished(
            messages, binding, lambda at: found[at].uid.bytes, has_more=len(found) > page.size
        )
        return subscription_service_pb2.ListSubscriptionsResponse(
            subscriptions=kept, next_page_token=token
        )

    async def UpdateSubscription(
        self, request: subscription_service_pb2.UpdateSubscriptionRequest, context: _Context
    ) -> subscription_service_pb2.UpdateSubscriptionResponse:
        """Change fields of a subscription."""
        del context
        violations: list[Violation] = []
        new = request.subscription
        tenant_id, subscription_id = tenant_and_id_in(
            new.name, _COLLECTION, violations, field=f"{PATH}name"
        )
        etag = etag_in(request.etag, new.etag, f"{PATH}etag", violations)
        leaves = leaves_in(request.update_mask.paths, new, LEAVES, violations, values=VALUES)
        if new.WhichOneof("target") == "pull" and "pull" in leaves:
            violations.append(
                Violation(
                    f"{PATH}pull",
                    "must not replace `http`: the kind of a target is immutable",
                    Reason.FIELD_IMMUTABLE,
                )
            )
        paths = request.update_mask.paths
        requested = requested_secrets_in(new.http, leaves, paths, HTTP, violations)
        self._reader.read(new, leaves, _BLANK, requested, violations)
        if violations:
            raise invalid(violations)
        refuse_unimplemented(new, leaves)

        def decide(seen: Subscription) -> Subscription:
            conflicts: list[Violation] = []
            wanted = self._reader.read(new, leaves, seen, requested, conflicts)
            check_scheme(seen, wanted, conflicts)
            if wanted.ordered is not seen.ordered:
                conflicts.append(
                    Violation(f"{PATH}ordered", _ORDERED_IS_IMMUTABLE, Reason.FIELD_IMMUTABLE)
                )
            if conflicts:
                raise invalid(conflicts)
            return wanted

        seen = await self._subscriptions.get(tenant_id, subscription_id)
        wanted = decide(seen)
        consented = None
        if needs_handshake(seen.target, wanted.target):
            consented = (await self._consented(seen, wanted, requested.stored)).target

        def settle(seen: Subscription) -> Subscription:
            return with_consent(seen, decide(seen), consented)

        changed = await self._subscriptions.change(
            tenant_id, subscription_id, settle, requested.stored, etag=etag
        )
        self._changes.poke()
        return subscription_service_pb2.UpdateSubscriptionResponse(subscription=message_of(changed))

    async def _consented(
        self, seen: Subscription | None, wanted: Subscription, target_secrets: TargetSecrets
    ) -> Subscription:
        """Return the subscription with the rate of the target's consent, if a handshake is due."""
        if not needs_handshake(None if seen is None else seen.target, wanted.target):
            return wanted
        consented = await self._target_handshakes.ask(
            wanted, target_secrets, None if seen is None else seen.uid
        )
        target = replace(wanted.target, allowed_per_minute=consented.per_minute)
        return replace(wanted, target=target)

    async def DeleteSubscription(
        self, request: subscription_service_pb2.DeleteSubscriptionRequest, context: _Context
    ) -> subscription_service_pb2.DeleteSubscriptionResponse:
        """Delete a subscription."""
        del context
        await self._subscriptions.delete(*_named(request.name), etag=request.etag)
        self._changes.poke()
        return subscription_service_pb2.DeleteSubscriptionResponse()

    async def PauseSubscription(
        self, request: subscription_service_pb2.PauseSubscriptionRequest, context: _Context
    ) -> subscription_service_pb2.PauseSubscriptionResponse:
        """Pause a subscription."""
        del context
        paused = await self._subscriptions.pause(*_named(request.name))
        self._changes.poke()
        return subscription_service_pb2.PauseSubscriptionResponse(subscription=message_of(paused))

    async def ResumeSubscription(
        self, request: subscription_service_pb2.ResumeSubscriptionRequest, context: _Context
    ) -> subscription_service_pb2.ResumeSubscriptionResponse:
        """Resume a subscription; cancel the deliveries of events before `discard_before`."""
        del context
        violations: list[Violation] = []
        name = tenant_and_id_in(request.name, _COLLECTION, violations)
        before = None
        if request.HasField("discard_before"):
            before = datetime_in(request.discard_before, "discard_before", violations)
            if before and before > await self._subscriptions.now():
                violations.append(Violation("discard_before", "must not be in the future"))
        if violations:
            raise invalid(violations)
        resumed = await self._subscriptions.resume(*name, discard_before=before)
        self._changes.poke()
        return subscription_service_pb2.ResumeSubscriptionResponse(subscription=message_of(resumed))

    async def RotateSigningSecret(
        self, request: subscription_service_pb2.RotateSigningSecretRequest, context: _Context
    ) -> subscription_service_pb2.RotateSigningSecretResponse:
        """Create or import a signing secret; the previous one also signs until the overlap ends."""
        del context
        violations: list[Violation] = []
        name = tenant_and_id_in(request.name, _COLLECTION, violations)
        overlap_s = DEFAULT_OVERLAP_S
        if request.HasField("overlap"):
            overlap_s = seconds_between(request.overlap, 0, MAX_OVERLAP_S, "overlap", violations)
        scheme = scheme_in(request.signature_scheme, "signature_scheme", violations)
        if scheme is None and not violations:
            scheme = (await self._subscriptions.get(*name)).target.signature_scheme
        secret = secret_in(request.signing_secret, scheme, "signing_secret", violations)
        if violations:
            raise invalid(violations)
        rotation = await self._subscriptions.rotate(*name, secret, overlap_s=overlap_s)
        self._changes.poke()
        return subscription_service_pb2.RotateSigningSecretResponse(
            signing_secret=secret.text,
            previous_expire_time=timestamp_of(rotation.previous_expire_time),
        )

    async def SendTestEvent(
        self, request: subscription_service_pb2.SendTestEventRequest, context: _Context
    ) -> subscription_service_pb2.SendTestEventResponse:
        """Send an event to this subscription only, with one attempt."""
        del context
        violations: list[Violation] = []
        tenant_id, subscription_id = tenant_and_id_in(request.name, _COLLECTION, violations)
        if not request.HasField("event"):
            violations.append(Violation("event", "is required", Reason.FIELD_REQUIRED))
            raise invalid(violations)
        event = self._events.read_one(request.event, "event.", violations)
        if violations:
            raise invalid(violations)
        subscription = await self._subscriptions.get(tenant_id, subscription_id)
        response = subscription_service_pb2.SendTestEventResponse(matched=True)
        if not any(matches(pattern, event.type) for pattern in subscription.event_types):
            response.matched = False
            response.mismatch_reason = event_service_pb2.MATCH_REASON_TYPE_NOT_SUBSCRIBED
        if request.validate_only:
            return response
        delivery_id, attempt = await self._test_events.send(subscription, event)
        delivery = await self._deliveries.get(tenant_id, delivery_id)
        response.delivery.CopyFrom(delivery_message(delivery))
        response.attempt.CopyFrom(attempt_message(attempt))
        return response


def _named(name: str, *, across: bool = False) -> tuple[str, str]:
    violations: list[Violation] = []
    ids = tenant_and_id_in(name, _COLLECTION, violations, across=across)
    if violations:
        raise invalid(violations)
    return ids


def _generated_id() -> str:
    """Return an id such as `s-mfrggzdfmztwq2lk`, with 80 random bits."""
    return "s-" + base64.b32encode(secrets.token_bytes(_GENERATED_ID_BYTES)).decode().lower()
