"""Keys that all nodes of a deployment share, each for one purpose, sealed with the master key.

Why they are not made from the master key: that one is exchanged now and then, and what was hashed
or signed with them is to outlive it. Such an exchange only seals them anew, at their place.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple

from hookline_service.store.database import Database
from hookline_service.store.secrets import KEY_BYTES, SecretBox
from hookline_service.store.statements import Statements

SQL = Statements("deployment_keys")

API_KEYS = "api keys"
"""The purpose of the key that tokens are hashed with (domain/api_key.py)."""
PAGE_TOKENS = "page tokens"
"""The purpose of the key that page tokens are signed with."""


class DeploymentKeyPlace(NamedTuple):
    """Where a deployment's key belongs."""

    purpose: str

    def associated_data(self) -> bytes:
        """The purpose: a key for one does not open as a key for another."""
        return b"hookline deployment key\0" + self.purpose.encode()


async def load_or_create_deployment_key(
    database: Database,
    box: SecretBox,
    purpose: str,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> bytes:
    """The deployment's key for a purpose, made where there is none yet: 32 bytes.

    Raises `SealedSecretError` where the box lacks the master key that sealed it.
    """
    place = DeploymentKeyPlace(purpose)
    row = await database.fetchrow(SQL.read, purpose)
    if row is None:
        await database.fetch(SQL.offer, purpose, box.seal(random_bytes(KEY_BYTES), place))
        (row,) = await database.fetch(SQL.read, purpose)
    return box.open(row["sealed"], place)
