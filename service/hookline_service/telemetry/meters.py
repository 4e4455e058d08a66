"""Typed instruments for all metrics, called by other packages.

Counters and gauges are numbers in memory that the SDK's observable instruments read when metrics
are collected (`export.py`); a call here is an addition. Labels have few values, known in advance:
methods, codes, outcomes, states. No label contains a tenant, subscription, event or address:
GetStatus returns figures of single subscriptions.
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
        """Add to the number of these labels."""
        self.values[labels] = self.values.get(labels, 0) + amount

    def set(self, value: float, labels: Labels = ()) -> None:
        """Set the number of these labels."""
        self.values[labels] = value


class Counter(Number):
    """A number that only grows."""


class Gauge(Number):
    """A number that rises and falls."""


class Meters:
    """All instruments of a node. Called in the event loop's thread only.

    Every instrument that is an attribute is exported: there is no other list.
    """

    def __init__(self, *, is_on: bool = True) -> None:
        """`is_on`: metrics are exported. Otherwise the hot path adds nothing."""
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
            "hookline.records.lost", "{attempt}", "Attempts whose row another node owned by then"
        )
        self.buckets_changed = Counter(
            "hookline.buckets.changed", "{bucket}", "Buckets that this node gained or lost"
        )
        self.spans = Counter(
            "hookline.telemetry.spans", "{span}", "Spans sent, refused by the collector, or dropped"
        )
        self.chores = Counter(
            "hookline.upkeep.chores", "{run}", "Chores done or failed on this node"
        )
        self.audit_log_diverged = Counter(
            "hookline.audit_log.diverged", "{check}",
            "Checks in which the audit log did not continue from its signed head",
        )  # fmt: skip
        self.cpu_time = Counter("process.cpu.time", "s", "CPU time of this process")

        self.pending = Gauge(
            "hookline.deliveries.pending", "{delivery}", "Pending deliveries of the deployment"
        )
        self.oldest_pending = Gauge(
            "hookline.deliveries.oldest_age", "s", "Age of the oldest pending delivery"
        )
        self.in_flight = Gauge(
            "hookline.deliveries.in_flight", "{delivery}", "Deliveries in flight on this node"
        )
        self.lanes = Gauge("hookline.lanes", "{lane}", "Lanes of this node, by state")
        self.buckets = Gauge("hookline.buckets.owned", "{bucket}", "Buckets owned by this node")
        self.http_connections = Gauge(
            "http.client.open_connections", "{connection}", "Connections to targets"
        )
        self.pool_connections = Gauge(
            "db.client.connection.count", "{connection}", "Connections of the pool for API calls"
        )
        self.oldest_xmin = Gauge(
            "hookline.postgres.oldest_xmin_age", "{transaction}",
            "Transactions since the oldest snapshot: vacuum cannot remove later dead rows",
        )  # fmt: skip

        self.unfrozen = Gauge(
            "hookline.postgres.unfrozen_age", "{id}",
            "Ids since the oldest unfrozen one: at 2 billion Postgres stops",
        )  # fmt: skip

        self._make_histograms()

    def _make_histograms(self) -> None:
        self.call_duration = _seconds("rpc.server.call.duration", "Duration of a call")
        self.delivery_latency = _seconds(
            "hookline.delivery.latency", "From the acceptance of an event to its recorded delivery"
        )
        self.attempt_duration = _seconds(
            "hookline.attempt.duration", "Duration of the HTTP request, by outcome"
        )
        self.commit_duration = _seconds(
            "db.client.operation.duration", "Duration of the statements of the data path"
        )
        self.publish_batch = _counts(
            "hookline.publish.batch_size", "{event}", "Events that share a commit"
        )
        self.record_batch = _counts(
            "hookline.record.batch_size", "{attempt}", "Outcomes that share a commit"
        )
        self.loop_lag = _seconds("hookline.event_loop.lag", "Delay of the event loop")

    def reset_gauges(self) -> None:
        """Set all gauges to 0 at the end of the process, so that sums exclude it."""
        for gauge in self.gauges:
            for labels in tuple(gauge.values):
                gauge.set(0, labels)

    @property
    def counters(self) -> list[Counter]:
        """All counters."""
        return [each for each in vars(self).values() if isinstance(each, Counter)]

    @property
    def gauges(self) -> list[Gauge]:
        """All gauges."""
        return [each for each in vars(self).values() if isinstance(each, Gauge)]

    @property
    def distributions(self) -> list[Distribution]:
        """All histograms."""
        return [each for each in vars(self).values() if isinstance(each, Distribution)]

    def call_ended(self, method: str, code: str, duration_s: float) -> None:
        """Count a gRPC call that ended. `method` is one of the contract, or `_OTHER`."""
        if self.is_on:
            labels = (
                (names.RPC_SYSTEM, names.GRPC), (names.RPC_METHOD, method),
                (names.RPC_STATUS, code),
            )  # fmt: skip
            self.call_duration.add(duration_s, labels)

    def committed(self, *, events: int, deliveries: int, took_s: float) -> None:
        """Count a group of publish calls that one statement stored."""
        if self.is_on:
            self.events_published.add(events)
            self.deliveries_created.add(deliveries)
            self.publish_batch.add(events)
            self.commit_duration.add(took_s, _of_statement("publish"))

    def chore_ended(self, name: str, *, has_failed: bool | None) -> None:
        """Count a chore that succeeded or failed; None creates both series at 0."""
        if self.is_on:
            for result, counts in (("done", has_failed is False), ("failed", has_failed is True)):
                labels = (("hookline.upkeep.chore", name), ("hookline.upkeep.result", result))
                self.chores.add(int(counts), labels)

    def released(self, outcome: AttemptOutcome) -> None:
        """Count an attempt that failed without the target's fault and is not recorded."""
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
        """Count a batch of outcomes that one statement stored.

        `attempts` has the latencies in microseconds by outcome, `delivered_s` the seconds from the
        acceptance of each delivered event; `lost` outcomes matched no row.
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
