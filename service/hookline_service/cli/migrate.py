"""`hookline migrate`: the schema, brought up to date."""

from __future__ import annotations

import argparse
import asyncio

from hookline_service.app import StartError, migrate_database
from hookline_service.cli.failure import CommandError
from hookline_service.cli.node import read_settings
from hookline_service.config import Role


def run(asked: argparse.Namespace) -> int:
    """Apply what is missing, and say what it was."""
    settings = read_settings(Role.MIGRATE, {})
    try:
        applied = asyncio.run(migrate_database(settings, post=asked.post))
    except StartError as error:
        raise CommandError(str(error)) from error
    for migration in applied:
        print(f"applied {migration.number:04} {migration.title} ({migration.half})")
    if not applied:
        print("the schema is up to date")
    return 0
