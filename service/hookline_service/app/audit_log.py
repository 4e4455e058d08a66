"""The audit log, verified on the database itself: no node is asked, for a node might be forged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from hookline_service.app.node import KEY_FILE
from hookline_service.app.running import running_database
from hookline_service.config import Settings
from hookline_service.domain.audit import AuditEntry, BrokenChainError, ChainHead, ChainWalk
from hookline_service.store.audit import AuditLog
from hookline_service.store.audit_checkpoints import AuditCheckpoints, CheckpointVerifier
from hookline_service.store.secrets import SecretBox, load_or_create_master_key

UNSEALED_MAX: Final = timedelta(seconds=60)
"""A node seals what is new within seconds: what is older and not sealed is suspect."""


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """A log in which nothing was found wrong."""

    head: ChainHead
    sealed: ChainHead | None
    """Up to here a node has signed it; None: signatures could not be checked."""
    key: str
    """The verifier key by which it was; empty: there was none to check with."""


async def verify_audit_log(
    settings: Settings,
    noted: ChainHead | None,
    tell: Callable[[int, int], None],
    verifier: CheckpointVerifier | None = None,
) -> VerifiedLog:
    """Check all that the tables hold: entries, head, drafts, triggers, and checkpoints.

    `verifier`: whose signatures count; None: those of the key in the database, if the settings have
    the master key that opens it. `tell` is called after each entry with how many were checked, and
    of how many. Raises `BrokenChainError`; `StartError`: it cannot be read.
    """
    async with running_database(settings) as database:
        log, checkpoints = AuditLog(database), AuditCheckpoints(database)
        verifier = verifier or await _verifier_of(settings, checkpoints)
        # Before the extent: what is signed later is no older than it.
        sealed = await _sealed(checkpoints, verifier) if verifier else {}
        extent = await log.extent()
        extent.check()
        walk = ChainWalk(noted, sealed={at: hash_ for at, hash_ in sealed.items() if at})
        last = max(sealed, default=0)
        async for entry in log.walk(extent.head.sequence):
            walk.follow(entry)
            if verifier and entry.sequence > last:
                _check_age(entry)
            tell(walk.head.sequence, extent.head.sequence)
        walk.end(extent.head)
        if verifier is None:
            return VerifiedLog(walk.head, None, "")
        return VerifiedLog(walk.head, ChainHead(last, sealed[last]), str(verifier))


async def export_audit_log(settings: Settings, behind: int) -> AsyncIterator[AuditEntry | str]:
    """Read the entries behind a sequence, oldest first, and then the newest note, if there is one.

    Raises `StartError`: it cannot be read.
    """
    async with running_database(settings) as database:
        note = await AuditCheckpoints(database).newest_note()
        log = AuditLog(database)
        async for entry in log.walk((await log.head()).sequence, behind=behind):
            yield entry
        if note is not None:
            yield note


async def _verifier_of(
    settings: Settings, checkpoints: AuditCheckpoints
) -> CheckpointVerifier | None:
    keys = settings.master_keys or _keys_of_dev(settings)
    if not keys:
        return None
    key = await checkpoints.load_key(SecretBox(keys))
    if key is not None:
        return key.verifier
    if await checkpoints.newest_note() is not None:
        raise BrokenChainError(0, "the key that signs checkpoints was removed")
    return None


def _keys_of_dev(settings: Settings) -> Sequence[bytes]:
    path = settings.data_dir / KEY_FILE
    return (
        load_or_create_master_key(path) if settings.database_url is None and path.exists() else ()
    )


async def _sealed(checkpoints: AuditCheckpoints, verifier: CheckpointVerifier) -> dict[int, bytes]:
    found = {one.head.sequence: one.head.hash async for one in checkpoints.walk(verifier)}
    if not found:
        raise BrokenChainError(0, "all checkpoints were removed")
    return found


def _check_age(entry: AuditEntry) -> None:
    age = datetime.now(UTC) - entry.create_time
    if not -UNSEALED_MAX <= age <= UNSEALED_MAX:
        raise BrokenChainError(
            entry.sequence,
            f"entry {entry.sequence} of {entry.create_time.isoformat(timespec='seconds')} is not"
            f" sealed, which a node does within {UNSEALED_MAX.total_seconds():g} s: none runs, or"
            " none takes the log for what it was",
        )
