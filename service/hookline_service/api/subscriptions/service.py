"""SubscriptionService: what targets want, how they are reached, and their secrets.

A secret leaves here twice: in the answer that creates a subscription and in the one that rotates
its secret. After every change this node reads the change log at once; others do within a second.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from grpc.aio import ServicerContext

from hookline.v1 import event_service_pb2, subscription_service_pb2, subscription_service_pb2_grpc
from hookline_service.api.conversion.names import NO_ID, tenant_and_id_in, tenant_id_in
from hookline_service.api.conversion.paging import NEWEST, Pages
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
    refuse_unbuilt,
    scheme_in,
)
from hookline_service.api.subscriptions.signing_secret import secret_in
from hookline_service.api.subscriptions.target_secrets import asked_secrets_in
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
_MADE_ID_BYTES = 10
_ORDERED_FOR_LIFE = (
    "is immutable: what is pending was accepted under it; create another subscription instead"
)
_BLANK = Subscription(tenant_id="", subscription_id="", uid=NO_ID, target=HttpTarget(url=""))
"""All defaults: what a new subscription is before its fields are read."""


class SubscriptionServicer(subscription_service_pb2_grpc.SubscriptionServiceServicer):
    """The calls of SubscriptionService."""

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
        """A new subscription, and its secret, this once."""
        del context
        violations: list[Violation] = []
        tenant_id = tenant_id_in(request.tenant, violations)
        subscription_id = request.subscription_id or _made_id()
        if problem := check_id(subscription_id):
            violations.append(Violation("subscription_id", problem))
        leaves = frozenset(LEAVES)
        new = request.subscription
        asked = asked_secrets_in(new.http, leaves, (), HTTP, violations)
        draft = self._reader.read(new, leaves, _BLANK, asked, violations)
        secret = secret_in(
            request.signing_secret, draft.target.signature_scheme, "signing_secret", violations
        )
        if violations:
            raise invalid(violations)
        refuse_unbuilt(new, leaves)
        draft = await self._consented(None, draft, asked.stored)
        created = await self._subscriptions.create(
            replace(draft, tenant_id=tenant_id, subscription_id=subscription_id),
            secret,
            asked.stored,
            max_of_tenant=self._limits.max_subscriptions_per_tenant,
        )
        self._changes.poke()
        return subscription_service_pb2.CreateSubscriptionResponse(
            subscription=message_of(created), signing_secret=secret.text
        )

    async def GetSubscription(
        self, request: subscription_service_pb2.GetSubscriptionRequest, context: _Context
    ) -> subscription_service_pb2.GetSubscriptionResponse:
        """One subscription."""
        del context
        found = await self._subscriptions.get(*_named(request.name, across=True))
        return subscription_service_pb2.GetSubscriptionResponse(subscription=message_of(found))

    async def ListSubscriptions(
        self, request: subscription_service_pb2.ListSubscriptionsRequest, context: _Context
    ) -> subscription_service_pb2.ListSubscriptionsResponse:
        """A page of a tenant's subscriptions, newest first."""
        del context
        violations: list[Violation] = []
        tenant_id = tenant_id_in(request.tenant, violations, across=True)
        binding = ("ListSubscriptions", tenant_id)
        page = self._pages.asked(request, binding, violations)
        before = UUID(bytes=page.cursor) if page.cursor else NEWEST
        found = await self._subscriptions.list_page(tenant_id, before=before, limit=page.size + 1)
        messages = [message_of(subscription) for subscription in found[: page.size]]
        kept = self._pages.cut(messages)
        response = subscription_service_pb2.ListSubscriptionsResponse(subscriptions=kept)
        if len(kept) < len(found):
            cursor = found[len(kept) - 1].uid.bytes
            response.next_page_token = self._pages.token(cursor, binding)
        return response

    async def UpdateSubscription(
        self, request: subscription_service_pb2.UpdateSubscriptionRequest, context: _Context
    ) -> subscription_service_pb2.UpdateSubscriptionResponse:
        """A subscription with some of its fields changed."""
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
                    f"{PATH}pull", "the kind of a target is immutable", Reason.FIELD_IMMUTABLE
                )
            )
        paths = request.update_mask.paths
        asked = asked_secrets_in(new.http, leaves, paths, HTTP, violations)
        self._reader.read(new, leaves, _BLANK, asked, violations)
        if violations:
            raise invalid(violations)
        refuse_unbuilt(new, leaves)

        def decide(seen: Subscription) -> Subscription:
            conflicts: list[Violation] = []
            wanted = self._reader.read(new, leaves, seen, asked, conflicts)
            check_scheme(seen, wanted, conflicts)
            if wanted.ordered is not seen.ordered:
                conflicts.append(
                    Violation(f"{PATH}ordered", _ORDERED_FOR_LIFE, Reason.FIELD_IMMUTABLE)
                )
            if conflicts:
                raise invalid(conflicts)
            return wanted

        seen = await self._subscriptions.get(tenant_id, subscription_id)
        wanted = decide(seen)
        consented = None
        if needs_handshake(seen.target, wanted.target):
            consented = (await self._consented(seen, wanted, asked.stored)).target

        def settle(seen: Subscription) -> Subscription:
            return with_consent(seen, decide(seen), consented)

        changed = await self._subscriptions.change(
            tenant_id, subscription_id, settle, asked.stored, etag=etag
        )
        self._changes.poke()
        return subscription_service_pb2.UpdateSubscriptionResponse(subscription=message_of(changed))

    async def _consented(
        self, seen: Subscription | None, wanted: Subscription, told: TargetSecrets
    ) -> Subscription:
        """A subscription, once its target has consented, if it is to be asked; what it allows."""
        if not needs_handshake(None if seen is None else seen.target, wanted.target):
            return wanted
        consented = await self._target_handshakes.ask(
            wanted, told, None if seen is None else seen.uid
        )
        target = replace(wanted.target, allowed_per_minute=consented.per_minute)
        return replace(wanted, target=target)

    async def DeleteSubscription(
        self, request: subscription_service_pb2.DeleteSubscriptionRequest, context: _Context
    ) -> subscription_service_pb2.DeleteSubscriptionResponse:
        """The end of a subscription."""
        del context
        await self._subscriptions.delete(*_named(request.name), etag=request.etag)
        self._changes.poke()
        return subscription_service_pb2.DeleteSubscriptionResponse()

    async def PauseSubscription(
        self, request: subscription_service_pb2.PauseSubscriptionRequest, context: _Context
    ) -> subscription_service_pb2.PauseSubscriptionResponse:
        """Its deliveries, held."""
        del context
        paused = await self._subscriptions.pause(*_named(request.name))
        self._changes.poke()
        return subscription_service_pb2.PauseSubscriptionResponse(subscription=message_of(paused))

    async def ResumeSubscription(
        self, request: subscription_service_pb2.ResumeSubscriptionRequest, context: _Context
    ) -> subscription_service_pb2.ResumeSubscriptionResponse:
        """Its deliveries, going out again; those of older events are cancelled, if asked to."""
        del context
        violations: list[Violation] = []
        name = tenant_and_id_in(request.name, _COLLECTION, violations)
        before = None
        if request.HasField("discard_before"):
            before = datetime_in(request.discard_before, "discard_before", violations)
            if before and before > await self._subscriptions.now():
                violations.append(Violation("discard_before", "must not lie in the future"))
        if violations:
            raise invalid(violations)
        resumed = await self._subscriptions.resume(*name, discard_before=before)
        self._changes.poke()
        return subscription_service_pb2.ResumeSubscriptionResponse(subscription=message_of(resumed))

    async def RotateSigningSecret(
        self, request: subscription_service_pb2.RotateSigningSecretRequest, context: _Context
    ) -> subscription_service_pb2.RotateSigningSecretResponse:
        """A new secret, this once; the one before signs on for the overlap."""
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
        """One event to this subscription alone, now; whether it matches is told, no more."""
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


def _made_id() -> str:
    """Such as `s-mfrggzdfmztwq2lk`: 80 random bits, so that none is made twice."""
    return "s-" + base64.b32encode(secrets.token_bytes(_MADE_ID_BYTES)).decode().lower()
