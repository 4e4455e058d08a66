"""Construction of the metrics sampler, with the parts that it samples."""

from __future__ import annotations

from hookline_service.app.engine import Engine
from hookline_service.config import Settings
from hookline_service.pipeline.upkeep.metrics_sampler import MetricsSampler, Watched
from hookline_service.store.database import Database
from hookline_service.store.status import StatusStore
from hookline_service.telemetry.providers import Telemetry


def make_metrics_sampler(
    settings: Settings, database: Database, engine: Engine, telemetry: Telemetry
) -> MetricsSampler:
    """Return the sampler of one node; it samples only if metrics are exported."""
    watched = Watched(
        lanes=engine.lanes,
        deliverer=engine.deliverer,
        ownership=engine.ownership,
        transport=engine.transport,
        database=database,
        status=StatusStore(database),
        time=engine.time,
        max_in_flight=settings.max_in_flight,
    )
    return MetricsSampler(telemetry.meters, watched, telemetry.count_spans)
