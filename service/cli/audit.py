"""`hookline audit`: whether the audit log is what was appended to it."""

from __future__ import annotations

import argparse
import asyncio
import sys

from service.app import StartError
from service.app.audit_log import verify_audit_log
from service.cli.failure import CommandError
from service.cli.node import read_settings
from service.cli.progress import Progress
from service.config import Role
from service.domain.audit import BrokenChainError


def run(asked: argparse.Namespace) -> int:
    """Walk the chain; 0 where it is whole, 1 where it is broken."""
    settings = read_settings(Role.AUDIT, {"DATA_DIR": asked.data_dir})
    try:
        head = asyncio.run(verify_audit_log(settings, asked.head, Progress().tell))
    except StartError as error:
        raise CommandError(str(error)) from error
    except BrokenChainError as error:
        print(f"hookline: the audit log is broken at {error.sequence}: {error}", file=sys.stderr)
        return 1
    print(f"OK: {head.sequence:,} entries, each follows from the one before")
    if asked.head:
        print(f"it goes on from the noted {asked.head}")
    if head.sequence:
        print(f"to be noted: {head}")
    return 0
