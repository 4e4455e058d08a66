"""Deletes expired entries of the audit log, and signs a statement of where it then begins.

Theory of operation. An entry is as old as the checkpoint that covers it: the first one signed at
its sequence or later. The moment of a checkpoint is signed by a node, so neither a clock of the
database nor a time in a row makes an entry old. A batch

    1. reads the signed statement of where the log begins, and checks that it begins there;
    2. finds the checkpoints that are old enough, up to `BATCH` entries or one checkpoint;
    3. checks the chain up to the last of these, whose signed hash it must end with;
    4. signs "pruned up to sequence N, whose hash was H" for each `BATCH` entries, and replaces the
       statement and deletes the entries in one transaction.

A log that was changed is thus not pruned: the evidence stays. The schema permits the deletion of
entries up to the statement's sequence and of no other.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from hookline_service.domain.audit import BrokenChainError, ChainHead, ChainWalk
from hookline_service.store.audit import AuditLog
from hookline_service.store.audit_checkpoints import (
    PRUNED_ORIGIN,
    AuditCheckpoints,
    CheckpointVerifier,
)
from hookline_service.store.secrets import SecretBox
from hookline_service.telemetry.instruments import UNOBSERVED
from hookline_service.telemetry.meters import Meters

_log = structlog.get_logger(__name__)

BATCH: Final = 1_000
"""Entries that one transaction deletes."""


class AuditPruner:
    """Prunes the audit log, a batch a call; one node at a time (`Upkeep` holds the lock)."""

    def __init__(
        self,
        log: AuditLog,
        checkpoints: AuditCheckpoints,
        box: SecretBox,
        *,
        retention_days: int,
        batch: int = BATCH,
        meters: Meters = UNOBSERVED.meters,
    ) -> None:
        """`retention_days`: 0 keeps every entry."""
        self._audit_log = log
        self._checkpoints = checkpoints
        self._box = box
        self._retention_days = retention_days
        self._batch = batch
        self._meters = meters

    async def prune(self) -> bool:
        """Delete a batch; return whether there may be more to delete.

        A log that does not follow from what was signed is left as it is, and logged.
        """
        if not self._retention_days:
            return False
        try:
            return await self._prune(datetime.now(UTC) - timedelta(days=self._retention_days))
        except BrokenChainError as error:
            self._meters.audit_log_diverged.add(1)
            _log.error("audit_log_diverged", sequence=error.sequence, error=str(error))
            return False

    async def _prune(self, before: datetime) -> bool:
        key = await self._checkpoints.load_key(self._box)
        if key is None:
            return False  # no node has signed anything yet
        ends = await self._audit_log.ends()
        start = key.verifier.read_pruned(ends.pruned_note)
        ends.check(start)
        target = await self._target(key.verifier, start, before)
        if target is None:
            return False
        for head in await self._verified_heads(start, target):
            note = key.sign(head, datetime.now(UTC), PRUNED_ORIGIN)
            if not await self._checkpoints.prune(head, note):
                return True  # a node that lost the lock of the chore was still at it
            _log.info("audit_log_pruned", sequence=head.sequence, hash=head.hash.hex())
        return True

    async def _target(
        self, verifier: CheckpointVerifier, start: ChainHead, before: datetime
    ) -> ChainHead | None:
        """Return the head up to which to prune now; None: nothing is old enough."""
        target: ChainHead | None = None
        async for one in self._checkpoints.walk(verifier, start.sequence + 1):
            if one.create_time >= before:
                break
            if target is not None and one.head.sequence > start.sequence + self._batch:
                break
            target = one.head
        return target

    async def _verified_heads(self, start: ChainHead, target: ChainHead) -> list[ChainHead]:
        """Return where each batch ends. Raises `BrokenChainError`: the chain leads elsewhere."""
        walk = ChainWalk(sealed={target.sequence: target.hash}, start=start)
        heads: list[ChainHead] = []
        async for entry in self._audit_log.walk(target.sequence, behind=start.sequence):
            walk.follow(entry)
            if (entry.sequence - start.sequence) % self._batch == 0:
                heads.append(walk.head)
        walk.end(target)
        if not heads or heads[-1] != target:
            heads.append(target)
        return heads
