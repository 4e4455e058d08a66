"""Explore every interleaving of the model with Spin, then those of each mutant.

`python -m tests.model SPIN` takes the path of the program. It ends with 1 where the model breaks an
assertion, or a mutant breaks none: then the model shows nothing.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

MODEL: Final = pathlib.Path(__file__).with_name("data_path.pml")
DEPTH_MAX: Final = 1_000_000
MEMORY_MAX_MB: Final = 2_000

CONFIGURATIONS: Final = (
    (),
    ("FAILOVER",),
    ("FAILOVER", "SYNCHRONOUS"),
)
MUTANTS: Final = (
    ("NO_EPOCH",),
    ("NO_PUBLISH_FENCE",),
    ("ACK_EARLY",),
    ("NO_RECORD_FENCE",),
    ("NO_VERSION",),
    ("NO_LOCAL_LEASE",),
    ("GIVES_BUSY",),
    ("KEEPS_JOBS",),
    ("FAILOVER", "NO_HISTORY"),
    ("FAILOVER", "NO_GRACE"),
    ("FAILOVER", "SYNCHRONOUS", "ACK_BEFORE_STANDBY"),
)


class ModelError(Exception):
    """The search did not come to an end, or its output says nothing."""


@dataclass(frozen=True, slots=True)
class Search:
    """What a whole search came to."""

    defines: tuple[str, ...]
    states: int
    broken: str
    """The assertion that broke; empty: none did."""
    took_s: float

    @property
    def is_as_expected(self) -> bool:
        """Whether the model holds, or the mutant does not."""
        return bool(self.broken) is (self.defines in MUTANTS)

    def __str__(self) -> str:
        kind = "mutant" if self.defines in MUTANTS else "model"
        name = " ".join(self.defines) or "without a failover"
        outcome = f"breaks {self.broken}" if self.broken else "holds"
        verdict = "" if self.is_as_expected else "FAILED: "
        return (
            f"{kind:6} {name:42} {self.states:>9,} states {self.took_s:5.1f} s  {verdict}{outcome}"
        )


def explore(spin: str, defines: tuple[str, ...]) -> Search:
    """Search every interleaving. Raises `ModelError`."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hookline-model-") as directory:

        def run(*command: str) -> str:
            done = subprocess.run(
                command, cwd=directory, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise ModelError(f"{command[0]} failed: {done.stdout[-500:]}{done.stderr[-500:]}")
            return done.stdout

        run(spin, *(f"-D{name}" for name in defines), "-a", str(MODEL))
        run("gcc", "-O2", "-DSAFETY", f"-DMEMLIM={MEMORY_MAX_MB}", "-w", "-o", "pan", "pan.c")
        output = run("./pan", f"-m{DEPTH_MAX}", "-n")
    errors = re.search(r"errors: (\d+)", output)
    states = re.search(r"(\S+) states, stored", output)
    broken = re.search(r"assertion violated (.*) \(at depth", output)
    if errors is None or states is None or (int(errors[1]) > 0) is not bool(broken):
        raise ModelError(f"the search reports: {output[:500]}")
    if not broken and ("Search not completed" in output or "max search depth" in output):
        raise ModelError("the search was cut short: raise DEPTH_MAX or MEMORY_MAX_MB")
    return Search(
        defines, int(float(states[1])), broken[1] if broken else "", time.monotonic() - began_s
    )


def main(spin: str) -> int:
    """Explore all; return the exit status."""
    is_all_well = True
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        for search in pool.map(partial(explore, spin), CONFIGURATIONS + MUTANTS):
            sys.stdout.write(f"{search}\n")
            is_all_well = is_all_well and search.is_as_expected
    return 0 if is_all_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
