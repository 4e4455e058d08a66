"""How a test waits for what another process or task does: for the named thing, never for a while.

The one place in the suite that sleeps. What can be awaited (a future, an event, a socket, a row's
NOTIFY) is awaited instead.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

POLL_S = 0.005
PATIENCE_S = 30.0
"""What nothing takes, on however busy a machine, unless it hangs. No promise is so long."""


async def until(
    holds: Callable[[], bool] | Callable[[], Awaitable[bool]],
    what: str,
    *,
    within_s: float = PATIENCE_S,
) -> None:
    """Return as soon as `holds` is true; it is asked every 5 ms. AssertionError: it never was."""
    deadline = time.monotonic() + within_s
    while True:
        answer = holds()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        assert time.monotonic() < deadline, f"waited {within_s:g} s in vain: {what}"
        await asyncio.sleep(POLL_S)
