"""Numbered events of ordering keys, and the order in which a target received them."""

from __future__ import annotations

from collections import defaultdict

import orjson

from hookline_service.domain.event import NewEvent
from tests.pipeline.receiver import Receiver
from tests.pipeline.rig import order_created


def keyed(key: str, number: int) -> NewEvent:
    """Create event `number` of an ordering key; an empty key is none."""
    return order_created(data=b'{"key":"%s","n":%d}' % (key.encode(), number), ordering_key=key)


def numbered(body: bytes) -> tuple[str, int]:
    """Return the key and the number of the event in a request."""
    data = orjson.loads(body)["data"]
    return data["key"], data["n"]


def arrivals(receiver: Receiver) -> list[tuple[str, int]]:
    """Return all received events in order, including retries and duplicates."""
    return [numbered(body) for _, body in receiver.requests]


def first_arrivals(receiver: Receiver) -> dict[str, list[int]]:
    """Return the numbers of each key in the order in which they arrived first."""
    found: dict[str, list[int]] = defaultdict(list)
    for key, number in arrivals(receiver):
        if number not in found[key]:
            found[key].append(number)
    return found
