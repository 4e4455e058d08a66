"""`hookline health`: whether a service serves; for a container's health check. Needs no key."""

from __future__ import annotations

import argparse
from typing import Any

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from hookline import HooklineClient
from hookline_service.cli.server import ask

_SERVING = HealthCheckResponse.SERVING


def run(asked: argparse.Namespace) -> int:
    """Ask once, print the answer; 0 is SERVING, 1 anything else."""

    async def questions(client: HooklineClient) -> int:
        stub: Any = HealthStub(client.channel)  # its types have no methods
        answer = await stub.Check(HealthCheckRequest())
        print(HealthCheckResponse.ServingStatus.Name(answer.status))
        return 0 if answer.status == _SERVING else 1

    return ask(asked, questions)
