"""The audit log, verified on the database itself: no node is asked, for a node might be forged."""

from __future__ import annotations

from collections.abc import Callable

from service.app.node import FORESEEN, StartError, sentence_of, url_of_running_database
from service.config import Settings
from service.domain.audit import ChainHead, ChainWalk
from service.domain.errors import HooklineError
from service.store.audit import AuditLog
from service.store.database import Database, RejectedError
from service.store.migrations import pending_migrations


async def verify_audit_log(
    settings: Settings, noted: ChainHead | None, tell: Callable[[int, int], None]
) -> ChainHead:
    """Walk the whole chain; its head, which is worth noting.

    What is appended meanwhile is left for the next time. `tell` hears after each entry how many
    were checked, and of how many. Raises `BrokenChainError`; `StartError`: it cannot be read.
    """
    try:
        url = url_of_running_database(settings)
        if await pending_migrations(url):
            raise StartError("the schema is not up to date: run `hookline migrate`")
        database = Database(url, pool_size=1)
        try:
            await database.open()
            return await _walked(AuditLog(database), noted, tell)
        finally:
            await database.close()
    except (HooklineError, RejectedError, *FORESEEN) as error:
        raise StartError(sentence_of(error)) from error


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
