"""What keeps a record batch from being written, and how long it waits before it is written again.

A lost deadlock is over within milliseconds, a database in trouble is not, a bad row never is.
Must not know what a batch holds.
"""

from __future__ import annotations

import structlog

from hookline_service.domain.errors import UnavailableError
from hookline_service.pipeline.dispatch.lane import Job
from hookline_service.store.database import ContentionError, OutcomeUnknownError, RejectedError

_log = structlog.get_logger(__name__)

REPEAT_S = 0.2
"""How long is waited for a database in trouble."""
LOST_MOST = 8
"""So many lost deadlocks in a row are trouble, too."""
FIRST_PAUSE_S = 0.002
"""After a lost deadlock at most; twice as long after the next. Without it two would meet again."""
_TROUBLES = frozenset({"08", "25", "53", "57", "58"})
"""SQLSTATE classes by which a server tells that it is in trouble, not that a row is bad."""


def is_transient(error: Exception) -> bool:
    """Whether it is the database that is not well; what was to be written will be."""
    return isinstance(error, ContentionError | UnavailableError | OutcomeUnknownError) or (
        isinstance(error, RejectedError) and error.sqlstate[:2] in _TROUBLES
    )


def deadlock_backoff_s(error: Exception, repeats: int, unit: float) -> float | None:
    """How long to wait for the `repeats`-th time, from 1 on; None where it is trouble.

    `unit` is uniform in [0, 1).
    """
    lost = repeats % LOST_MOST
    if not isinstance(error, ContentionError) or not lost:
        return None
    return unit * FIRST_PAUSE_S * 2.0 ** (lost - 1)


def tell_repeated(deliveries: int, error: Exception) -> None:
    """A batch waits for a database in trouble."""
    said = str(error).partition("\n")[0]
    _log.warning("record_retried", deliveries=deliveries, error=said)


def tell_unstorable(what: str, job: Job, error: Exception) -> None:
    """What the server says goes as its first line: the others hold the row, and others' data."""
    is_ours = not isinstance(error, RejectedError)
    _log.error(
        what,
        delivery=str(job.delivery_id),
        sqlstate=getattr(error, "sqlstate", ""),
        error=str(error).partition("\n")[0],
        exc_info=error if is_ours else None,
    )
