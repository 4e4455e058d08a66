"""`hookline audit`: verifies the audit log, and exports it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator

from google.protobuf.json_format import MessageToDict

from hookline_service.api.access.conversion import audit_entry_message
from hookline_service.app import StartError
from hookline_service.app.audit_log import (
    SignedNote,
    VerifiedLog,
    export_audit_log,
    verify_audit_log,
)
from hookline_service.cli.failure import CommandError
from hookline_service.cli.node import read_settings
from hookline_service.cli.progress import Progress
from hookline_service.config import Role, Settings
from hookline_service.domain.audit import BrokenChainError


def run(asked: argparse.Namespace) -> int:
    """Verify or export; return 0, or 1 if the log is broken."""
    settings = read_settings(Role.AUDIT, {"DATA_DIR": asked.data_dir})
    try:
        if asked.action == "export":
            asyncio.run(_export(settings, asked.behind))
            return 0
        log = asyncio.run(verify_audit_log(settings, asked.head, Progress().show, asked.key))
    except StartError as error:
        raise CommandError(str(error)) from error
    except BrokenChainError as error:
        print(f"hookline: the audit log is broken at {error.sequence}: {error}", file=sys.stderr)
        return 1
    print("\n".join(_lines(asked, log)))
    return 0


def _lines(asked: argparse.Namespace, log: VerifiedLog) -> Iterator[str]:
    count = log.head.sequence - log.start.sequence
    yield f"OK: {count:,} entries, each follows from the one before"
    if log.start.sequence:
        yield f"entries up to {log.start.sequence:,} were pruned after their retention"
    if asked.head:
        yield f"it continues from the head {asked.head}"
    if log.sealed is None:
        yield "signatures were not checked: that needs --key, or the master key"
    else:
        recent = log.head.sequence - log.sealed.sequence
        yield f"signed up to {log.sealed.sequence:,} by {log.key}; {recent:,} entries are newer"
    if log.head.sequence:
        yield f"store this head: {log.head}"


async def _export(settings: Settings, behind: int) -> None:
    async for one in export_audit_log(settings, behind):
        if isinstance(one, SignedNote):
            line: dict[str, object] = {one.kind: one.text}
        else:
            line = MessageToDict(audit_entry_message(one))
        print(json.dumps(line, ensure_ascii=False, separators=(",", ":")))
