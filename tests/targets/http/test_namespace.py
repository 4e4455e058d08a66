"""Egress in a network namespace where public and private addresses accept connections.

The other tests of egress see that nothing is connected to; here a mistake would reach a server. An
ordinary user may run it where unprivileged user namespaces are allowed; elsewhere it is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.architecture.repository import ROOT
from tests.targets.http.namespace import CASES, PRIVATE, PRIVATE_6, TROUBLES

UNSHARE = ("unshare", "--map-root-user", "--net", "--mount")
PATIENCE_S = 50


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results of the cases, run in a namespace of their own."""
    missing = [tool for tool in ("unshare", "ip", "mount") if shutil.which(tool) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"no {', '.join(missing)} here, and egress needs a network to be tested in")
    if missing:
        pytest.skip(f"NOT TESTED: egress in a network of its own; there is no {', '.join(missing)}")
    allowed = subprocess.run([*UNSHARE, "true"], check=False, capture_output=True, text=True)
    if allowed.returncode:
        pytest.skip(f"NOT TESTED: egress in a network of its own: {allowed.stderr.strip()}")
    resolv_conf = tmp_path_factory.mktemp("namespace") / "resolv.conf"
    ran = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "tests.targets.http.namespace", str(resolv_conf)],
        cwd=ROOT,
        env={**os.environ, "RES_OPTIONS": "timeout:1 attempts:1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_every_private_address_of_the_namespace_accepts_connections(world: dict[str, Any]) -> None:
    assert {*world["reachable"]} >= {*PRIVATE, *PRIVATE_6}


@pytest.mark.parametrize("name", CASES)
def test_only_public_addresses_are_connected_to(world: dict[str, Any], name: str) -> None:
    seen = world["cases"][name]
    assert seen == {"outcomes": list(CASES[name].outcomes), "reached": list(CASES[name].reached)}


@pytest.mark.parametrize("name", TROUBLES)
def test_failed_lookup_counts_against_the_name_only_if_its_parent_servers_answer(
    world: dict[str, Any], name: str
) -> None:
    """The system's resolver is used; a name in the hosts file and a cached one resolve."""
    assert world["lookups"][name] == TROUBLES[name]
