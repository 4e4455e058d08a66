"""Hookline, the webhook engine of an open platform.

An event is published over gRPC (`api`), stored together with its deliveries and handed off to
lanes (`pipeline`, whose packages read in order), and sent as a signed HTTP request (`targets`).
`store` is Postgres, and the only package with asyncpg; `domain` holds values and rules without a
clock or a socket, above all the state machine of a delivery. `schema` validates data against JSON
Schemas; `identity` reads certificates and tokens; `telemetry` names what is measured; `app`
constructs everything from `config`; `supervisor` runs processes behind one port; `cli` is the
command line. Imports go only downward: cli > supervisor > app > config | api > pipeline > store |
targets | identity | schema > telemetry > domain.
"""

from typing import Final

VERSION: Final = "0.1.0"
"""Of the service: what nodes register, `user-agent` says and `hookline --version` prints."""
