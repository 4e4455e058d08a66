"""Verification and export of the audit log, directly from the database: no node is trusted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from hookline_service.app.node import KEY_FILE, StartError
from hookline_service.app.running import running_database
from hookline_service.config import Settings
from hookline_service.domain.audit import AuditEntry, BrokenChainError, ChainHead, ChainWalk
from hookline_service.store.audit import AuditLog, LogEnds
from hookline_service.store.audit_checkpoints import (
    AuditCheckpoints,
    CheckpointVerifier,
    read_unverified,
)
from hookline_service.store.secrets import SecretBox, load_or_create_master_key

UNSEALED_MAX: Final = timedelta(seconds=60)
"""A node signs new entries within seconds: an older entry without a signature is suspect."""


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """The result of a verification that found no error."""

    head: ChainHead
    sealed: ChainHead | None
    """The last signed head; None: signatures could not be checked."""
    key: str
    """The verifier key of the signatures; empty: they were not checked."""
    start: ChainHead
    """The head behind which the log begins: earlier entries were pruned."""


async def verify_audit_log(
    settings: Settings,
    noted: ChainHead | None,
    on_progress: Callable[[int, int], None],
    verifier: CheckpointVerifier | None = None,
) -> VerifiedLog:
    """Check all that the tables hold: entries, head, drafts, triggers, and checkpoints.

    `verifier`: whose signatures count; None: those of the key in the database, if the settings have
    the master key that opens it. `on_progress` is called after each entry with the number of
    checked entries, and of all entries. Raises `BrokenChainError`; `StartError`: it cannot be read,
    or the noted head lies before the first entry that is kept.
    """
    async with running_database(settings) as database:
        log, checkpoints = AuditLog(database), AuditCheckpoints(database)
        verifier = verifier or await _verifier_of(settings, checkpoints)
        while True:
            pruned_note = await log.pruned_note()
            try:
                return await _verify(log, checkpoints, verifier, noted, on_progress)
            except BrokenChainError:
                if await log.pruned_note() == pruned_note:
                    raise  # else entries were pruned meanwhile, and the rest is checked anew


async def _verify(
    log: AuditLog,
    checkpoints: AuditCheckpoints,
    verifier: CheckpointVerifier | None,
    noted: ChainHead | None,
    on_progress: Callable[[int, int], None],
) -> VerifiedLog:
    # Before the extent: what is signed later is no older than it.
    sealed = await _sealed(checkpoints, verifier) if verifier else {}
    extent = await log.extent()
    start = _start(extent.ends, verifier)
    extent.check(start)
    _check_start(start, noted, sealed)
    head = extent.ends.head
    later = {at: hash_ for at, hash_ in sealed.items() if at > start.sequence}
    walk = ChainWalk(noted, sealed=later, start=start)
    last = max(sealed, default=0)
    async for entry in log.walk(head.sequence, behind=start.sequence):
        walk.follow(entry)
        if verifier and entry.sequence > last:
            _check_age(entry)
        on_progress(walk.head.sequence - start.sequence, head.sequence - start.sequence)
    walk.end(head)
    if verifier is None:
        return VerifiedLog(walk.head, None, "", start)
    return VerifiedLog(walk.head, ChainHead(last, sealed[last]), str(verifier), start)


def _start(ends: LogEnds, verifier: CheckpointVerifier | None) -> ChainHead:
    if verifier is None:
        return read_unverified(ends.pruned_note)
    return verifier.read_pruned(ends.pruned_note)


def _check_start(start: ChainHead, noted: ChainHead | None, sealed: Mapping[int, bytes]) -> None:
    """Compare the beginning of a pruned log with what is signed or was noted of it."""
    at = start.sequence
    if at and sealed.get(at, start.hash) != start.hash:
        raise BrokenChainError(at, f"entry {at}, the last pruned, has another hash than was signed")
    if noted is None or noted.sequence > at:
        return
    if noted.sequence < at:
        raise StartError(
            f"the noted head lies before entry {at + 1}, the first that is kept: give a later one,"
            " or compare it with an export"
        )
    if noted != start:
        raise BrokenChainError(at, f"entry {at}, the last pruned, has another hash than was noted")


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A note that a node signed, as it is stored."""

    kind: Literal["pruned", "checkpoint"]
    text: str


async def export_audit_log(
    settings: Settings, behind: int
) -> AsyncIterator[AuditEntry | SignedNote]:
    """Read the entries behind a sequence, oldest first, and then the newest checkpoint, if any.

    First comes the statement of what was pruned, if entries behind `behind` were.
    Raises `BrokenChainError`: the log begins elsewhere; `StartError`: it cannot be read.
    """
    async with running_database(settings) as database:
        log, checkpoints = AuditLog(database), AuditCheckpoints(database)
        verifier = await _verifier_of(settings, checkpoints)
        note, ends = await checkpoints.newest_note(), await log.ends()
        start = _start(ends, verifier)
        ends.check(start)
        if ends.pruned_note is not None and behind < start.sequence:
            yield SignedNote("pruned", ends.pruned_note)
        expected = max(behind, start.sequence) + 1
        async for entry in log.walk(ends.head.sequence, behind=expected - 1):
            if entry.sequence != expected:
                raise _missing(expected)
            expected += 1
            yield entry
        if expected <= ends.head.sequence:
            raise _missing(expected)
        if note is not None:
            yield SignedNote("checkpoint", note)


def _missing(sequence: int) -> BrokenChainError:
    return BrokenChainError(
        sequence, f"entry {sequence} is missing, or was pruned during the export"
    )


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
            f" signed, which a node does within {UNSEALED_MAX.total_seconds():g} s: no node runs,"
            " or the nodes reject the log",
        )
