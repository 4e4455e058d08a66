"""Logs, traces and metrics: the only package that depends on OpenTelemetry.

Other packages get two small typed objects from the composition root and call them at few points:
`Tracer` (`tracing.py`) makes spans, `Meters` (`meters.py`) counts. Both do almost nothing if
nothing is exported. `providers.py` starts and stops the exporters and their threads.
"""

from hookline_service.telemetry.logs import LogFormat, LogLevel, configure_logging, mark_lines

__all__ = ["LogFormat", "LogLevel", "configure_logging", "mark_lines"]
