"""Hookline, the webhook engine of an open platform.

An event is published over gRPC (`api`), stored together with its deliveries and handed to lanes
(`pipeline`, where the whole data path reads in order: publish, matching, ownership, lanes, deliver,
record, replay, upkeep), and sent as a signed HTTP request (`webhook`). `store` is Postgres, and the
only room that knows it; `domain` holds what is true without a clock or a socket, above all the
state machine of a delivery. `identity` knows certificates and tokens; `telemetry` names what is
measured; `app` alone constructs things from `config`; `supervisor` runs several of them behind one
port; `cli` is the door. Imports go only downward: cli > supervisor > app > config | api > pipeline
> store | webhook | identity > telemetry > domain.
"""

from typing import Final

VERSION: Final = "0.1.0"
"""Of the service: what nodes register, `user-agent` says and `hookline --version` prints."""
