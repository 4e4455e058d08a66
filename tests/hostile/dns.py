"""Names of a hostile tenant: slow, lying, changing, huge, or none, hundreds of each.

What a node's resolver says of them is in `resolver/sitecustomize.py`. What a real resolver makes of
servers that misbehave is tested in a network of its own (`tests/targets/http/test_namespace.py`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.hostile.receivers import publish_for_ever, subscribed
from tests.hostile.scenario import Scenario
from tests.hostile.stage import Target

NAMES = 200
CLOSED_PORT = 1024
RESOLVER = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).with_name("resolver")), *sys.path])}


async def _attack(target: Target, kind: str) -> None:
    urls = [f"http://{kind}-{number}.test:{CLOSED_PORT}/" for number in range(NAMES)]
    async with subscribed(target, urls) as publisher:
        await publish_for_ever(publisher)


async def timeouts(target: Target) -> None:
    """Servers that never answer: each lookup holds a thread for seconds."""
    await _attack(target, "silent")


async def servfail(target: Target) -> None:
    """Names whose servers fail at once, while the resolver works."""
    await _attack(target, "servfail")


async def no_such_names(target: Target) -> None:
    """Names that do not exist."""
    await _attack(target, "none")


async def rebinding(target: Target) -> None:
    """Answers that alternate between an address that is allowed and one that is not."""
    await _attack(target, "rebinding")


async def mixed(target: Target) -> None:
    """Allowed and forbidden addresses in one answer."""
    await _attack(target, "mixed")


async def huge(target: Target) -> None:
    """4,096 addresses in one answer, none of which listens."""
    await _attack(target, "huge")


SCENARIOS = (
    Scenario("DNS: time-outs", timeouts, settings=RESOLVER),
    Scenario("DNS: dead servers", servfail, settings=RESOLVER),
    Scenario("DNS: no such names", no_such_names, settings=RESOLVER),
    Scenario("DNS: rebinding", rebinding, settings=RESOLVER),
    Scenario("DNS: mixed answers", mixed, settings=RESOLVER),
    Scenario("DNS: huge answers", huge, settings=RESOLVER),
)
