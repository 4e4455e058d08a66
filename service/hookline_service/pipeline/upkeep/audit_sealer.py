"""Signs the head of the audit log every few seconds, if the log goes on from what was signed.

Every `SEAL_S` a node reads what came behind the last head that it signed, or found signed when it
started, checks the chain up to the new head, and signs that. So an entry can be changed without a
trace only before its first seal, or where every node is away. What a node has signed it remembers:
a log that was rolled back under it is not signed again. Each checkpoint is logged: where logs are
kept elsewhere, so are the heads.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final

import structlog

from hookline_service.domain.audit import BrokenChainError, ChainHead, ChainWalk
from hookline_service.store.audit import AuditLog
from hookline_service.store.audit_checkpoints import AuditCheckpoints, CheckpointKey
from hookline_service.store.database import TRANSIENT
from hookline_service.telemetry.instruments import UNOBSERVED
from hookline_service.telemetry.meters import Meters

_log = structlog.get_logger(__name__)

SEAL_S: Final = 5.0


class AuditSealer:
    """Signs the head of the log while a node runs."""

    def __init__(
        self,
        log: AuditLog,
        checkpoints: AuditCheckpoints,
        key: CheckpointKey,
        meters: Meters = UNOBSERVED.meters,
    ) -> None:
        self._audit_log = log
        self._checkpoints = checkpoints
        self._key = key
        self._meters = meters
        self._sealed: ChainHead | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._meters.audit_log_diverged.add(0)  # so that the first divergence is an increase
        self._task = asyncio.create_task(self._run(), name="audit sealer")

    async def stop(self) -> None:
        """Seal what came last, and end."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._try_to_seal()

    async def _run(self) -> None:
        while True:
            await self._try_to_seal()
            await asyncio.sleep(SEAL_S)

    async def _try_to_seal(self) -> None:
        try:
            await self.seal()
        except BrokenChainError as error:
            self._meters.audit_log_diverged.add(1)
            _log.error("audit_log_diverged", sequence=error.sequence, error=str(error))
        except TRANSIENT as error:
            _log.debug("audit_log_not_sealed", error=str(error))
        except Exception:  # noqa: BLE001 - logged whole; the next turn tries again
            _log.exception("audit_sealing_broken")

    async def seal(self) -> ChainHead:
        """Sign the head, if there is a new one; return what is sealed now.

        Raises `BrokenChainError`: the log does not go on from what was sealed, or does not begin
        where a signed statement says.
        """
        if self._sealed is None:
            self._sealed = (await self._checkpoints.latest(self._key.verifier)).head
        ends = await self._audit_log.ends()
        start = self._key.verifier.read_pruned(ends.pruned_note)
        ends.check(start)
        head = ends.head
        if head == self._sealed:
            return head
        if start.sequence > self._sealed.sequence:
            # This node was frozen for longer than the retention; others signed what was pruned.
            self._sealed = start
        walk = ChainWalk(start=self._sealed)
        async for entry in self._audit_log.walk(head.sequence, behind=self._sealed.sequence):
            walk.follow(entry)
        walk.end(head)
        if head != self._sealed:
            await self._checkpoints.add(head, self._key.sign(head, datetime.now(UTC)))
        self._sealed = head
        _log.info("audit_checkpoint_signed", sequence=head.sequence, hash=head.hash.hex())
        return head
