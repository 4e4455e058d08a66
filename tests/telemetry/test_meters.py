"""Instruments: counting, bounds on label sets, and the table in the docs."""

from collections import Counter

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.delivery import DeliveryState
from hookline_service.telemetry.distribution import SECONDS, Distribution
from hookline_service.telemetry.meters import Meters
from tests.docs.pages import page


def test_value_equal_to_a_bound_belongs_to_the_bucket_below() -> None:
    spread = Distribution("x", "s", "", (1, 2))
    spread.add_all([0.5, 1, 1.5, 2, 3])
    series = spread.snapshot()[()]
    assert series.counts == [2, 2, 1]
    assert (series.total, series.minimum, series.maximum) == (8, 0.5, 3)


def test_snapshot_is_a_copy() -> None:
    spread = Distribution("x", "s", "", SECONDS)
    spread.add(1)
    before = spread.snapshot()[()]
    spread.add(1)
    assert sum(before.counts) == 1


def test_number_of_label_sets_is_bounded() -> None:
    spread = Distribution("x", "s", "", SECONDS, max_series=2)
    for name in ("a", "b", "c", "a"):
        spread.add(1, (("label", name),))
    assert [sum(series.counts) for series in spread.snapshot().values()] == [2, 1]


def test_record_batch_updates_all_its_metrics() -> None:
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


def test_meters_that_are_off_count_nothing() -> None:
    meters = Meters(is_on=False)
    meters.committed(events=1, deliveries=1, took_s=1.0)
    meters.call_ended("x", "OK", 1.0)
    assert meters.events_published.values == {}
    assert meters.call_duration.snapshot() == {}


def test_documented_metrics_are_the_exported_ones() -> None:
    rows = page("docs/observability.md").table("Metrics")
    documented = {name.strip(" `") for row in rows for name in row[0].split(",")}
    meters = Meters()
    exported = {number.name for number in (*meters.counters, *meters.gauges)}
    exported |= {distribution.name for distribution in meters.distributions}
    assert exported == documented
