"""The seam between dispatching and the kinds of targets.

A subscription has one target; `TargetSenders` makes a `TargetSender` of it once per revision of the
subscription, and every attempt is one call of its `send`. Dispatching does not depend on
URLs, connections or statuses: it acts on `Outcome.verdict` and stores `Outcome.record`.

To add a kind of target (a message queue, a pull target):

1. `domain/subscription.py`: its configuration as a frozen dataclass beside `HttpTarget`.
2. `targets/KIND/sender.py`: a `TargetSender`, and a `SenderFactory` that makes it; `targets/http`
   is the model. `targets/payload.py` builds the bytes of every kind.
3. `app/engine.py`, `_make_senders`: the factory under the type of the configuration.
4. `api/subscriptions` and `store/subscription_rows.py`: the configuration on the wire and in SQL.

Nothing in `pipeline/dispatch` changes. Handshakes (`pipeline/actions/target_handshakes.py`) are for
HTTP targets only.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hookline_service.domain.attempt import Outcome
from hookline_service.domain.subscription import HttpTarget, Subscription
from hookline_service.targets.payload import Message

Target = HttpTarget
"""The configurations of all kinds; a new kind makes it a union."""


class SendJob(Protocol):
    """One attempt of a delivery, as a sender sees it."""

    @property
    def message(self) -> Message:
        """The event."""

    @property
    def start_us(self) -> int:
        """The attempt's start: database time, Unix microseconds."""

    @property
    def traceparent(self) -> bytes | None:
        """The trace context for the receiver; None if the subscription does not propagate it."""

    def may_send(self) -> bool:
        """Whether this node may still send the delivery: its lease holds, the row is unchanged.

        A sender must call this immediately before the first byte leaves, and return INTERNAL_ERROR
        where it is False.
        """


class TargetSender(Protocol):
    """Sends the deliveries of one subscription to its target."""

    @property
    def destination(self) -> str:
        """Where it sends to, such as a URL: another one closes the lane's circuit breaker."""

    @property
    def memory_bytes(self) -> int:
        """The approximate memory of the prepared target, in bytes."""

    def send(self, job: SendJob) -> Coroutine[Any, Any, Outcome]:
        """Make one attempt.

        Every failure of the network or the target is an `Outcome`, never an exception. Cancellation
        propagates.
        """


@dataclass(frozen=True, slots=True)
class TargetCredentials:
    """The opened secrets of a subscription."""

    signing_secrets: tuple[str, ...] = field(repr=False)
    """Serialized, newest first."""
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    certificate: tuple[str, str] | None = field(default=None, repr=False)
    """The client certificate's chain and key, in PEM."""


SenderFactory = Callable[[Subscription, TargetCredentials], TargetSender]
"""Makes the sender of a subscription; raises ValueError if its target is not usable."""


class TargetSenders:
    """The factories of all kinds of targets, by the type of the target's configuration."""

    def __init__(self, factories: Mapping[type[Target], SenderFactory]) -> None:
        self._factories = factories

    def sender_of(self, subscription: Subscription, credentials: TargetCredentials) -> TargetSender:
        """Make the sender of a subscription; raise ValueError if its target is not usable."""
        return self._factories[type(subscription.target)](subscription, credentials)
