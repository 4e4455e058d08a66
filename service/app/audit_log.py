"""The audit log, verified on the database itself: no node is asked, for a node might be forged."""

from __future__ import annotations

from collections.abc import Callable

from service.app.running import running_database
from service.config import Settings
from service.domain.audit import ChainHead, ChainWalk
from service.store.audit import AuditLog


async def verify_audit_log(
    settings: Settings, noted: ChainHead | None, tell: Callable[[int, int], None]
) -> ChainHead:
    """Walk the whole chain; its head, which is worth noting.

    What is appended meanwhile is left for the next time. `tell` hears after each entry how many
    were checked, and of how many. Raises `BrokenChainError`; `StartError`: it cannot be read.
    """
    async with running_database(settings) as database:
        return await _walked(AuditLog(database), noted, tell)


async def _walked(
    log: AuditLog, noted: ChainHead | None, tell: Callable[[int, int], None]
) -> ChainHead:
    kept = await log.head()
    walk = ChainWalk(noted)
    async for entry in log.walk(kept.sequence):
        walk.follow(entry)
        tell(walk.head.sequence, kept.sequence)
    walk.end(kept)
    return walk.head
