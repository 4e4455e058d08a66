"""Instruments: what is added up, that it stays bounded, and that it is told in the documents."""

from collections import Counter

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.delivery import DeliveryState
from hookline_service.telemetry.distribution import SECONDS, Distribution
from hookline_service.telemetry.meters import Meters
from tests.docs.pages import page


def test_a_value_lies_below_its_bound() -> None:
    spread = Distribution("x", "s", "", (1, 2))
    spread.add_all([0.5, 1, 1.5, 2, 3])
    series = spread.snapshot()[()]
    assert series.counts == [2, 2, 1]
    assert (series.total, series.minimum, series.maximum) == (8, 0.5, 3)


def test_a_snapshot_does_not_change_any_more() -> None:
    spread = Distribution("x", "s", "", SECONDS)
    spread.add(1)
    before = spread.snapshot()[()]
    spread.add(1)
    assert sum(before.counts) == 1


def test_the_sets_of_labels_are_bounded() -> None:
    spread = Distribution("x", "s", "", SECONDS, max_series=2)
    for name in ("a", "b", "c", "a"):
        spread.add(1, (("label", name),))
    assert [sum(series.counts) for series in spread.snapshot().values()] == [2, 1]


def test_a_record_batch_is_added_up_at_once() -> None:
    meters = Meters()
    meters.recorded(
        {AttemptOutcome.ACCEPTED: [1_000, 2_000], AttemptOutcome.HTTP_ERROR: [3_000]},
        [0.5, 1.5],
        Counter({DeliveryState.SUCCEEDED: 2}),
        lost=1,
        took_s=0.001,
    )
    assert sum(meters.attempts.values.values()) == 3
    assert meters.records_lost.values[()] == 1
    assert meters.deliveries_finished.values[(("hookline.delivery.state", "SUCCEEDED"),)] == 2
    latency = meters.delivery_latency.snapshot()[()]
    assert (sum(latency.counts), latency.total) == (2, 2.0)
    batch = meters.record_batch.snapshot()[()]
    assert batch.total == 4


def test_where_nobody_collects_nothing_is_added_up() -> None:
    meters = Meters(is_on=False)
    meters.committed(events=1, deliveries=1, took_s=1.0)
    meters.call_ended("x", "OK", 1.0)
    assert meters.events_published.values == {}
    assert meters.call_duration.snapshot() == {}


def test_the_table_has_every_metric_and_no_other() -> None:
    rows = page("docs/observability.md").table("Metrics")
    told = {name.strip(" `") for row in rows for name in row[0].split(",")}
    meters = Meters()
    exported = {number.name for number in (*meters.counters, *meters.gauges)}
    exported |= {distribution.name for distribution in meters.distributions}
    assert exported == told
