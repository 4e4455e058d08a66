"""`python -m tests.hostile.attacker MODULE:ATTACK SECONDS`: attack until the time is over.

Reads the target as a line of JSON, answers a line when it begins, and prints at its end how often
the attack was made and how it was answered.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import resource
import signal
import sys
from collections import Counter

import uvloop

from tests.hostile.scenario import Attack
from tests.hostile.stage import Target


async def attack_on(attack: Attack, target: Target, seconds: float, ends: Counter[str]) -> None:
    """Attack again and again; what an attack ends with is counted."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await attack(target)
                    ends["returned"] += 1
                except TimeoutError:
                    ends["timed out"] += 1
                except (OSError, EOFError) as error:
                    ends[type(error).__name__] += 1
                await asyncio.sleep(0)
    except TimeoutError:
        return


async def main(name: str, seconds: float) -> None:
    module, _, function = name.partition(":")
    attack: Attack = getattr(importlib.import_module(module), function)
    target = Target(**json.loads(sys.stdin.readline()))
    ends: Counter[str] = Counter()
    running = asyncio.ensure_future(attack_on(attack, target, seconds, ends))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    await asyncio.gather(running, return_exceptions=True)
    sys.stdout.write(", ".join(f"{count} {end}" for end, count in ends.items()) or "never ended")


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(main(sys.argv[1], float(sys.argv[2])))
