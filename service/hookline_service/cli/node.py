"""What `dev` and `serve` share: settings, logs, and a node, with failures as sentences."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence

from hookline_service.app import StartError
from hookline_service.cli.failure import CommandError
from hookline_service.config import ListenAddress, Role, Settings, SettingsError
from hookline_service.supervisor import forbid_core_dumps, run_node, run_worker, run_workers
from hookline_service.telemetry import configure_logging


def read_settings(role: Role, flags: Mapping[str, str | None]) -> Settings:
    """The settings of the environment and the command line, and logs by them."""
    try:
        settings = Settings.from_environ(os.environ, role, flags)
    except SettingsError as error:
        count = len(error.problems)
        head = "a setting is wrong" if count == 1 else f"{count} settings are wrong"
        lines = "".join(f"\n  {problem}" for problem in error.problems)
        raise CommandError(f"{head}:{lines}") from error
    if not settings.are_core_dumps_allowed:
        forbid_core_dumps()
    configure_logging(settings.log_format, settings.log_level)
    return settings


def run(
    asked: argparse.Namespace,
    settings: Settings,
    announce: Callable[[ListenAddress], None],
    command: Sequence[str],
) -> int:
    """Run one node, or `command` in several processes, to its end; the exit code."""
    try:
        if asked.worker:
            return run_worker(settings, asked.worker)
        if settings.workers > 1:
            return run_workers(settings, announce, command, stop_with_input=asked.stop_with_input)
        run_node(settings, announce, stop_with_input=asked.stop_with_input)
    except StartError as error:
        raise CommandError(str(error)) from error
    return 0
