"""The pulse, put together with what it looks at."""

from __future__ import annotations

from service.app.engine import Engine
from service.config import Settings
from service.pipeline.pulse import Pulse, Watched
from service.store.database import Database
from service.store.status import StatusStore
from service.telemetry.providers import Telemetry


def make_pulse(
    settings: Settings, database: Database, engine: Engine, telemetry: Telemetry
) -> Pulse:
    """The pulse of one node; it beats only where somebody collects."""
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
    return Pulse(telemetry.meters, watched, telemetry.count_spans)
