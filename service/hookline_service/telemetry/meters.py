"""What is counted and measured, as typed instruments that the rooms call.

Counters and gauges are numbers in memory, which the SDK's observable instruments read when somebody
collects (`export.py`); a call here is an addition. Labels have few values, known beforehand: of
methods, codes, outcomes, states. No tenant, subscription, event or address is ever one: figures of
single subscriptions are GetStatus's.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from typing import Final

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.delivery import DeliveryState
from hookline_service.telemetry import names
from hookline_service.telemetry.distribution import COUNTS, SECONDS, Distribution, Labels

_MICROSECONDS: Final = 1_000_000


class Number:
    """A number for each set of labels."""

    def __init__(self, name: str, unit: str, description: str) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self.values: dict[Labels, float] = {}

    def add(self, amount: float, labels: Labels = ()) -> None:
        """Count."""
        self.values[labels] = self.values.get(labels, 0) + amount

    def set(self, value: float, labels: Labels = ()) -> None:
        """What it is now."""
        self.values[labels] = value


class Counter(Number):
    """Only grows."""


class Gauge(Number):
    """Goes up and down."""


class Meters:
    """All instruments of a node. Called in the event loop's thread alone.

    An instrument that is an attribute here is exported: nothing else lists them.
    """

    def __init__(self, *, is_on: bool = True) -> None:
        """`is_on`: somebody will collect; else nothing is added up on the hot path."""
        self.is_on = is_on
        self.events_published = Counter(
            "hookline.events.published", "{event}", "Events accepted and stored"
        )
        self.deliveries_created = Counter(
            "hookline.deliveries.created", "{delivery}", "Deliveries stored with their events"
        )
        self.attempts = Counter(
            "hookline.attempts", "{attempt}", "Attempts that ended, by their outcome"
        )
        self.deliveries_finished = Counter(
            "hookline.deliveries.finished", "{delivery}", "Deliveries that an attempt finished"
        )
        self.records_lost = Counter(
            "hookline.records.lost", "{attempt}", "Attempts whose row was another's by then"
        )
        self.buckets_changed = Counter(
            "hookline.buckets.changed", "{bucket}", "Buckets that this node gained or lost"
        )
        self.spans = Counter(
            "hookline.telemetry.spans", "{span}", "Spans sent, refused by the collector, dropped"
        )
        self.chores = Counter(
            "hookline.upkeep.chores", "{run}", "Chores that this node did, and those that failed"
        )
        self.audit_log_diverged = Counter(
            "hookline.audit_log.diverged", "{check}",
            "Checks in which the audit log did not go on from what was signed",
        )  # fmt: skip
        self.cpu_time = Counter("process.cpu.time", "s", "CPU time of this process")

        self.pending = Gauge(
            "hookline.deliveries.pending", "{delivery}", "Pending deliveries of the deployment"
        )
        self.oldest_pending = Gauge(
            "hookline.deliveries.oldest_age", "s", "Age of the oldest pending delivery"
        )
        self.in_flight = Gauge(
            "hookline.deliveries.in_flight", "{delivery}", "Sent and not yet recorded, of this node"
        )
        self.lanes = Gauge("hookline.lanes", "{lane}", "Lanes of this node, by what holds them")
        self.buckets = Gauge("hookline.buckets.owned", "{bucket}", "Buckets of this node")
        self.http_connections = Gauge(
            "http.client.open_connections", "{connection}", "Connections to targets"
        )
        self.pool_connections = Gauge(
            "db.client.connection.count", "{connection}", "Connections of the calls' pool"
        )
        self.oldest_xmin = Gauge(
            "hookline.postgres.oldest_xmin_age", "{transaction}",
            "How far the oldest snapshot of the server lies back: what vacuum cannot clean up",
        )  # fmt: skip

        self.unfrozen = Gauge(
            "hookline.postgres.unfrozen_age", "{id}",
            "Ids since the oldest that vacuum has not frozen: at 2 billion Postgres stops",
        )  # fmt: skip

        self._make_histograms()

    def _make_histograms(self) -> None:
        self.call_duration = _seconds("rpc.server.call.duration", "Duration of a call")
        self.delivery_latency = _seconds(
            "hookline.delivery.latency", "From an event's acceptance to its delivery"
        )
        self.attempt_duration = _seconds(
            "hookline.attempt.duration", "Of the HTTP request, by its outcome"
        )
        self.commit_duration = _seconds(
            "db.client.operation.duration", "Of the statements of the data path"
        )
        self.publish_batch = _counts(
            "hookline.publish.batch_size", "{event}", "Events that share a commit"
        )
        self.record_batch = _counts(
            "hookline.record.batch_size", "{attempt}", "Outcomes that share a commit"
        )
        self.loop_lag = _seconds(
            "hookline.event_loop.lag", "How late the event loop wakes who asked for it"
        )

    def ended(self) -> None:
        """The process has nothing any more: what a collector keeps of it adds to no sum."""
        for gauge in self.gauges:
            for labels in tuple(gauge.values):
                gauge.set(0, labels)

    @property
    def counters(self) -> list[Counter]:
        """What only grows."""
        return [each for each in vars(self).values() if isinstance(each, Counter)]

    @property
    def gauges(self) -> list[Gauge]:
        """What goes up and down."""
        return [each for each in vars(self).values() if isinstance(each, Gauge)]

    @property
    def distributions(self) -> list[Distribution]:
        """What is spread."""
        return [each for each in vars(self).values() if isinstance(each, Distribution)]

    def call_ended(self, method: str, code: str, duration_s: float) -> None:
        """A gRPC call ended. `method` is one of the contract's, or `_OTHER`."""
        if self.is_on:
            labels = (
                (names.RPC_SYSTEM, names.GRPC), (names.RPC_METHOD, method),
                (names.RPC_STATUS, code),
            )  # fmt: skip
            self.call_duration.add(duration_s, labels)

    def committed(self, *, events: int, deliveries: int, took_s: float) -> None:
        """A group of publish calls was stored by one statement."""
        if self.is_on:
            self.events_published.add(events)
            self.deliveries_created.add(deliveries)
            self.publish_batch.add(events)
            self.commit_duration.add(took_s, _of_statement("publish"))

    def chore_ended(self, name: str, *, has_failed: bool | None) -> None:
        """A chore was done or failed; None: neither yet, so that its first failure is a rise."""
        if self.is_on:
            for result, counts in (("done", has_failed is False), ("failed", has_failed is True)):
                labels = (("hookline.upkeep.chore", name), ("hookline.upkeep.result", result))
                self.chores.add(int(counts), labels)

    def released(self, outcome: AttemptOutcome) -> None:
        """An attempt came to nothing that the target can answer for, and is not recorded."""
        if self.is_on:
            self.attempts.add(1, ((names.OUTCOME, outcome.value),))

    def recorded(
        self,
        attempts: Mapping[AttemptOutcome, list[int]],
        delivered_s: Iterable[float],
        finished: Tally[DeliveryState],
        *,
        lost: int,
        took_s: float,
    ) -> None:
        """A batch of outcomes was stored by one statement.

        `attempts` are the latencies in microseconds by outcome, `delivered_s` the seconds from each
        delivered event's acceptance; `lost` outcomes matched no row.
        """
        count = lost
        for outcome, latencies_us in attempts.items():
            labels = ((names.OUTCOME, outcome.value),)
            self.attempts.add(len(latencies_us), labels)
            self.attempt_duration.add_all(
                [latency_us / _MICROSECONDS for latency_us in latencies_us], labels
            )
            count += len(latencies_us)
        self.delivery_latency.add_all(delivered_s)
        for state, number in finished.items():
            self.deliveries_finished.add(number, (("hookline.delivery.state", state.value),))
        if lost:
            self.records_lost.add(lost)
        self.record_batch.add(count)
        self.commit_duration.add(took_s, _of_statement("record"))


def _seconds(name: str, description: str) -> Distribution:
    return Distribution(name, "s", description, SECONDS)


def _counts(name: str, unit: str, description: str) -> Distribution:
    return Distribution(name, unit, description, COUNTS)


def _of_statement(name: str) -> Labels:
    return (("db.system.name", "postgresql"), ("db.operation.name", name))
