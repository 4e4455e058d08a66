"""Numbered events for a batching publisher, and the order in which the service received them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from hookline.batching import BatchingPublisher
from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import PublishResult
from tests.client.service import Service, refuse

NEVER_MS = 3_600_000.0
UNAVAILABLE = refuse(grpc.StatusCode.UNAVAILABLE, pushback="30")

Publishing = list[asyncio.Task[PublishResult]]


def numbered(number: int, **fields: Any) -> Event:  # noqa: ANN401 (any field)
    return Event(**({"type": "order.created", "subject": str(number)} | fields))


def start(publisher: BatchingPublisher, numbers: Sequence[int]) -> Publishing:
    """Publish so many events, each from a task of its own, in this order."""
    return [asyncio.create_task(publisher.publish(numbered(number))) for number in numbers]


def sizes(service: Service) -> list[int]:
    return [len(request.events) for request in service.events.requests]


def subjects(service: Service) -> list[int]:
    """The events in the order in which they came, all requests in a row."""
    return [int(event.subject) for r in service.events.requests for event in r.events]
