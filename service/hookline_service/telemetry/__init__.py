"""What the service tells of itself: logs, traces, metrics. The only room that knows OpenTelemetry.

Other rooms get small typed objects from the composition root and call them at few points: `Tracer`
(`tracing.py`) makes spans, `Meters` (`meters.py`) counts. Both cost next to nothing where nobody
listens. What leaves the process, when and by which thread is `pipeline`'s and `api`'s no more than
it is theirs: `providers.py` alone starts and stops it.
"""

from hookline_service.telemetry.logs import LogFormat, LogLevel, configure_logging, mark_lines

__all__ = ["LogFormat", "LogLevel", "configure_logging", "mark_lines"]
