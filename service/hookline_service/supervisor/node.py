"""The process around a node: its event loop, its signals, its end.

    SIGTERM, SIGINT, SIGHUP    a clean stop: what is under way may end, the node's work is handed on
    a second one               the same at once: nothing is waited for

A signal that comes while the node is still starting stops the start. Nothing is lost by any of
this, nor by kill -9: an accepted event is in the database. Must not know what a node is made of.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import structlog
import uvloop

from hookline_service.app import App
from hookline_service.config import ListenAddress, Settings

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
    """Run a node until it is told to stop; `announce` is called once it serves.

    `stop_with_input`: the end of standard input is a signal too, so that a child outlives no
    parent; what comes before is a question, to which `answer` is called. `place`: it is one of
    several behind one port, and the supervisor calls it so. Raises `StartError` where it cannot
    start; it has then stopped what it had started.
    """
    raise_descriptor_limit()
    app = App(settings, place=place)
    host = settings.listen.host
    uvloop.run(_run(app, host, announce, stop_with_input=stop_with_input, answer=answer))


def raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as it may: each connection is one.

    The soft limit is for programs that use `select`, and often a thousand.
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
    """Spare the garbage collector what lives as long as the process, and let it come less often.

    A full collection of a node took 20 to 35 ms, several times a second at full speed: that was a
    large part of the slowest answers. What the data path makes is freed by reference counts.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def listen_for_signals(hurry: Callable[[], None]) -> asyncio.Event:
    """The event of the first signal; each further one calls `hurry`."""
    asked = asyncio.Event()

    def caught(number: int) -> None:
        _log.info("signal_received", name=signal.Signals(number).name)
        if asked.is_set():
            hurry()
        asked.set()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        # One that is ignored stays so: it is how `nohup` and a shell's `&` keep a process alive.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, caught, number)
    return asked


def watch_input(ended: Callable[[], object], answer: Callable[[], None] | None = None) -> None:
    """Call `ended` once standard input is at its end: whoever held it is gone.

    `answer` is called for what comes before; None: it is nothing to anybody.
    """
    loop, file = asyncio.get_running_loop(), sys.stdin.fileno()

    def readable() -> None:
        if not os.read(file, 4096):
            loop.remove_reader(file)
            ended()
        elif answer is not None:
            answer()

    loop.add_reader(file, readable)
