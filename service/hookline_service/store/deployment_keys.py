"""Keys that all nodes of a deployment share, each for one purpose, encrypted with the master key.

They are not derived from the master key, because hashes and signatures made with them must stay
valid after a rotation of the master key, which only encrypts them again.
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
"""The purpose of the key of the token hash (domain/api_key.py)."""
PAGE_TOKENS = "page tokens"
"""The purpose of the key that signs page tokens."""


class DeploymentKeyPlace(NamedTuple):
    """The place of a key of the deployment."""

    purpose: str

    def associated_data(self) -> bytes:
        """Return the purpose."""
        return b"hookline deployment key\0" + self.purpose.encode()


async def load_or_create_deployment_key(
    database: Database,
    box: SecretBox,
    purpose: str,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> bytes:
    """Return the deployment's key for a purpose, 32 bytes; create it if it does not exist.

    Raises `SealedSecretError` if the box does not have the master key.
    """
    place = DeploymentKeyPlace(purpose)
    row = await database.fetchrow(SQL.read, purpose)
    if row is None:
        await database.fetch(SQL.offer, purpose, box.seal(random_bytes(KEY_BYTES), place))
        (row,) = await database.fetch(SQL.read, purpose)
    return box.open(row["sealed"], place)
