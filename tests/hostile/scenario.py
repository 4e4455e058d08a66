"""What a scenario is: a name, an attack, and for how long; and how it is run.

An attack is a coroutine function of a module of this folder. It runs in a process of its own, is
called again whenever it returns, and is ended when its time is over:

    async def ping_flood(target: Target) -> None: ...

    SCENARIOS = (Scenario("ping flood", ping_flood),)

Measured of each scenario, before, during and after the attack: the latency of a known publisher and
of a health check (which needs the node's event loop and nothing else), calls that failed, the
node's memory; and how long after the attack the publisher is answered as before.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field

from tests.e2e.processes import environment
from tests.hostile.probe import Phase
from tests.hostile.stage import Stage, Target

ATTACKER = (sys.executable, "-P", "-m", "tests.hostile.attacker")
RECOVERED_CALLS = 10
"""So many calls of the known publisher in a row, as quick as before: the node has recovered."""
RECOVERY_MAX_S = 30.0
ENDS_WITHIN_S = 5.0
"""How long an attacker may take to end; then it is killed."""


Attack = Callable[[Target], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One attack on one node."""

    name: str
    attack: Attack
    prepare: Attack | None = None
    """Runs once before anything is measured, in the suite's own process."""
    processes: int = 1
    """Attackers at once."""
    settings: Mapping[str, str | bytes] = field(default_factory=dict)
    """What the node's environment has besides; bytes are put in a file, which it names."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of one scenario."""

    name: str
    before: Phase
    during: Phase
    after: Phase
    memory_before_mb: float
    memory_peak_mb: float
    memory_after_mb: float
    cpu_s: float
    """What the node used during the attack, per second of it."""
    recovery_s: float | None
    """From the attack's end; None: not within 30 s."""
    is_alive: bool
    attacks: str
    """What the attackers say of themselves."""

    def as_json(self) -> dict[str, object]:
        """All of it."""
        return asdict(self)


async def play(scenario: Scenario, stage: Stage, seconds: float) -> Result:
    """Run one scenario against a node that serves, and measure it."""
    probe = stage.probe
    if scenario.prepare is not None:
        await scenario.prepare(stage.target)
    before = await probe.watch(min(seconds, 2.0))
    memory_before_mb = stage.memory_mb()
    with stage.peak_memory() as peak:
        cpu_before_s, began_s = stage.cpu_s(), time.monotonic()
        async with attacking(scenario, stage.target, seconds) as words:
            during = await probe.watch(seconds)
        ended_s = time.monotonic()
        cpu_s = (stage.cpu_s() - cpu_before_s) / (ended_s - began_s)
        recovery_s = await probe.recovered(before, RECOVERED_CALLS, RECOVERY_MAX_S)
        after = await probe.watch(min(seconds, 2.0))
    return Result(
        name=scenario.name,
        before=before,
        during=during,
        after=after,
        memory_before_mb=memory_before_mb,
        memory_peak_mb=peak.mb,
        memory_after_mb=stage.memory_mb(),
        cpu_s=cpu_s,
        recovery_s=recovery_s,
        is_alive=stage.is_alive(),
        attacks="; ".join(words),
    )


@asynccontextmanager
async def attacking(scenario: Scenario, target: Target, seconds: float) -> AsyncIterator[list[str]]:
    """Attack while inside; leaving ends the attackers. What they say is in the list afterwards."""
    words: list[str] = []
    name = f"{scenario.attack.__module__}:{scenario.attack.__qualname__}"
    attackers = [
        await asyncio.create_subprocess_exec(
            *ATTACKER,
            name,
            str(seconds),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment(),
        )
        for _ in range(scenario.processes)
    ]
    try:
        for attacker in attackers:
            assert attacker.stdin is not None
            assert attacker.stdout is not None
            attacker.stdin.write(json.dumps(asdict(target)).encode() + b"\n")
            assert await attacker.stdout.readline() == b"begun\n", f"{name} did not begin"
        yield words
    finally:
        for attacker in attackers:
            if attacker.returncode is None:
                attacker.terminate()
        for attacker in attackers:
            try:
                said, _ = await asyncio.wait_for(attacker.communicate(), ENDS_WITHIN_S)
            except TimeoutError:
                attacker.kill()
                said, _ = await attacker.communicate()
            words.append(said.decode().strip())
