"""Processes that stand still for a while, as under SIGSTOP: nodes, workers, Postgres backends."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop these processes for the time of the context, so that they answer nothing."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
