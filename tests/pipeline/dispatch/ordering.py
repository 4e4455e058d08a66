"""Events that know their place, and the order in which a target got them."""

from __future__ import annotations

from collections import defaultdict

import orjson

from hookline_service.domain.event import NewEvent
from tests.pipeline.receiver import Receiver
from tests.pipeline.rig import order_created


def keyed(key: str, number: int) -> NewEvent:
    """Event `number` of an ordering key; of no key where that is empty."""
    return order_created(data=b'{"key":"%s","n":%d}' % (key.encode(), number), ordering_key=key)


def place_of(body: bytes) -> tuple[str, int]:
    """The key and the number of the event in a request."""
    data = orjson.loads(body)["data"]
    return data["key"], data["n"]


def arrivals(receiver: Receiver) -> list[tuple[str, int]]:
    """What came, in this order, retries and doubles too."""
    return [place_of(body) for _, body in receiver.requests]


def first_arrivals(receiver: Receiver) -> dict[str, list[int]]:
    """The numbers of each key in the order in which each came for the first time."""
    found: dict[str, list[int]] = defaultdict(list)
    for key, number in arrivals(receiver):
        if number not in found[key]:
            found[key].append(number)
    return found
