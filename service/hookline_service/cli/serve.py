"""`hookline serve`: for production, a node for each core."""

from __future__ import annotations

import argparse

from hookline_service import VERSION
from hookline_service.cli import node
from hookline_service.config import ListenAddress, Role


def run(asked: argparse.Namespace) -> int:
    """Serve until stopped."""

    def announce(address: ListenAddress) -> None:
        print(f"Hookline {VERSION} serves gRPC on {address}\nready", flush=True)

    settings = node.read_settings(Role.SERVE, {"LISTEN": asked.listen})
    return node.run(asked, settings, announce, ["serve"])
