"""The process around a node: its event loop, its signals, its limits.

    SIGTERM, SIGINT, SIGHUP    graceful shutdown: requests on the wire end, the node's buckets are
                               handed over
    a second signal            the same without waiting for anything

A signal during the start cancels the start. No accepted event is lost by either, nor by SIGKILL: it
is in the database. Independent of the parts of a node.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog
import uvloop

from hookline_service.app import App
from hookline_service.config import ListenAddress, Settings

_PR_SET_DUMPABLE: Final = 4
"""<linux/prctl.h>"""
_GC_THRESHOLDS = (5_000, 50, 100)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = structlog.get_logger(__name__)


def run_node(
    settings: Settings,
    announce: Callable[[ListenAddress], None],
    *,
    stop_with_input: bool = False,
    answer: Callable[[], None] | None = None,
    place: str = "",
) -> None:
    """Run a node until a signal stops it; call `announce` once it serves.

    `stop_with_input`: the end of standard input counts as a signal, so that a child process does
    not outlive its parent; each input before the end is a liveness probe, which calls `answer`.
    `place`: the supervisor's name for this process, one of several behind one port. Raises
    `StartError` if the node cannot start; the parts that had started are stopped then.
    """
    raise_descriptor_limit()
    app = App(settings, place=place)
    host = settings.listen.host
    uvloop.run(_run(app, host, announce, stop_with_input=stop_with_input, answer=answer))


def raise_descriptor_limit() -> None:
    """Raise the soft limit of file descriptors to the hard limit: each connection needs one.

    The soft limit is often about a thousand, for programs that use `select`.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a kernel that has a lower limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(
    app: App,
    host: str,
    announce: Callable[[ListenAddress], None],
    *,
    stop_with_input: bool,
    answer: Callable[[], None] | None,
) -> None:
    asked = listen_for_signals(app.hurry)
    if stop_with_input:
        watch_input(asked.set, answer)
    starting = asyncio.create_task(app.start())
    waiting = asyncio.create_task(asked.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
    try:
        port = await starting
    except asyncio.CancelledError:
        if asked.is_set():
            return
        raise
    finally:
        waiting.cancel()
    try:
        settle_memory()
        announce(ListenAddress(host, port))
        await asked.wait()
    finally:
        await app.stop()


def settle_memory() -> None:
    """Exclude the objects made at the start from garbage collection, and collect less often.

    A full collection of a node took 20 to 35 ms, several times a second at full load, a large part
    of the latency at the 99th percentile. Objects of the data path are freed by reference counts.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def forbid_core_dumps() -> None:
    """Forbid core dumps of this process, and reads of its memory, which holds the keys.

    RLIMIT_CORE alone does not bind a kernel whose core_pattern pipes into a program, such as
    systemd-coredump. A process that is not dumpable is never dumped, and another process of the
    same user, without CAP_SYS_PTRACE, can neither attach to it nor read /proc/PID/mem and
    /proc/PID/environ. Child processes inherit the limit, but not the second property.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def listen_for_signals(hurry: Callable[[], None]) -> asyncio.Event:
    """Return an event that the first signal sets; each further signal calls `hurry`."""
    asked = asyncio.Event()

    def caught(number: int) -> None:
        _log.info("signal_received", name=signal.Signals(number).name)
        if asked.is_set():
            hurry()
        asked.set()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        # An ignored signal stays ignored: so `nohup` and a shell's `&` keep a process alive.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, caught, number)
    return asked


def watch_input(ended: Callable[[], object], answer: Callable[[], None] | None = None) -> None:
    """Call `ended` once standard input is at its end: the parent process has ended.

    `answer` is called for each input before the end; None: the input is ignored.
    """
    loop, file = asyncio.get_running_loop(), sys.stdin.fileno()

    def readable() -> None:
        if not os.read(file, 4096):
            loop.remove_reader(file)
            ended()
        elif answer is not None:
            answer()

    loop.add_reader(file, readable)
