"""What is counted and measured, as typed instruments that the rooms call.

Counters and gauges are numbers in memory, which the SDK's observable instruments read when somebody
collects (`export.py`); a call here is an addition. Labels have few values, known beforehand: of
methods, codes, outcomes, states. No tenant, subscription, event or address is ever one: figures of
single subscriptions are GetStatus's.
"""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING, Final

from service.telemetry import names
from service.telemetry.distribution import COUNTS, SECONDS, Distribution, Labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from service.domain.attempt import AttemptOutcome
    from service.domain.delivery import DeliveryState

_MICROSECONDS: Final = 1_000_000
_COMMIT: Final = "commit"


class Number:
    """A counter, or a gauge: a number for each set of labels."""

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


class Meters:
    """All instruments of a node. Called in the event loop's thread alone."""

    def __init__(self, *, is_on: bool = True) -> None:
        """`is_on`: somebody will collect; else nothing is added up on the hot path."""
        self.is_on = is_on
        self.events_published = Number(
            "hookline.events.published", "{event}", "Events accepted and stored"
        )
        self.deliveries_created = Number(
            "hookline.deliveries.created", "{delivery}", "Deliveries stored with their events"
        )
        self.attempts = Number(
            "hookline.attempts", "{attempt}", "Attempts recorded, by their outcome"
        )
        self.deliveries_finished = Number(
            "hookline.deliveries.finished", "{delivery}", "Deliveries that an attempt finished"
        )
        self.records_lost = Number(
            "hookline.records.lost", "{attempt}", "Attempts whose row was another's by then"
        )
        self.buckets_changed = Number(
            "hookline.buckets.changed", "{bucket}", "Buckets that this node gained or lost"
        )
        self.spans = Number(
            "hookline.telemetry.spans", "{span}", "Spans sent, refused by the collector, dropped"
        )
        self.cpu_time = Number("process.cpu.time", "s", "CPU time of this process")
        self.pending = Number(
            "hookline.deliveries.pending", "{delivery}", "Pending deliveries of the deployment"
        )
        self.oldest_pending = Number(
            "hookline.deliveries.oldest_age", "s", "Age of the oldest pending delivery"
        )
        self.in_flight = Number(
            "hookline.deliveries.in_flight", "{delivery}", "Sent and not yet recorded, of this node"
        )
        self.lanes = Number("hookline.lanes", "{lane}", "Lanes of this node, by what holds them")
        self.buckets = Number("hookline.buckets.owned", "{bucket}", "Buckets of this node")
        self.http_connections = Number(
            "http.client.open_connections", "{connection}", "Connections to targets"
        )
        self.pool_connections = Number(
            "db.client.connection.count", "{connection}", "Connections of the calls' pool"
        )
        self.oldest_xmin = Number(
            "hookline.postgres.oldest_xmin_age", "{transaction}",
            "How far the oldest snapshot of the server lies back: what vacuum cannot clean up",
        )  # fmt: skip
        self.call_duration = Distribution(
            "rpc.server.call.duration", "s", "Duration of a call", SECONDS
        )
        self.delivery_latency = Distribution(
            "hookline.delivery.latency", "s", "From an event's acceptance to its delivery", SECONDS
        )
        self.attempt_duration = Distribution(
            "hookline.attempt.duration", "s", "Of the HTTP request, by its outcome", SECONDS
        )
        self.commit_duration = Distribution(
            "db.client.operation.duration", "s", "Of the statements of the data path", SECONDS
        )
        self.publish_batch = Distribution(
            "hookline.publish.batch_size", "{event}", "Events that share a commit", COUNTS
        )
        self.record_batch = Distribution(
            "hookline.record.batch_size", "{attempt}", "Outcomes that share a commit", COUNTS
        )
        self.loop_lag = Distribution(
            "hookline.event_loop.lag", "s", "How late the event loop wakes who asked for it",
            SECONDS,
        )  # fmt: skip

    @property
    def counters(self) -> list[Number]:
        """What only grows."""
        return [
            self.events_published, self.deliveries_created, self.attempts, self.deliveries_finished,
            self.records_lost, self.buckets_changed, self.spans, self.cpu_time,
        ]  # fmt: skip

    @property
    def gauges(self) -> list[Number]:
        """What goes up and down."""
        return [
            self.pending, self.oldest_pending, self.in_flight, self.lanes, self.buckets,
            self.http_connections, self.pool_connections, self.oldest_xmin,
        ]  # fmt: skip

    @property
    def distributions(self) -> list[Distribution]:
        """What is spread."""
        return [
            self.call_duration, self.delivery_latency, self.attempt_duration, self.commit_duration,
            self.publish_batch, self.record_batch, self.loop_lag,
        ]  # fmt: skip

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


def _of_statement(name: str) -> Labels:
    return (("db.system.name", "postgresql"), ("db.operation.name", name))
