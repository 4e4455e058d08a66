"""Rotation and removal of master keys, directly in the database."""

from __future__ import annotations

from collections.abc import Callable

from hookline_service.app.running import running_database
from hookline_service.config import Settings
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.master_keys import (
    KeyRotation,
    KeyUse,
    RotationReport,
    forget_master_key,
)
from hookline_service.store.secrets import SecretBox, key_id_of

__all__ = ["KeyUse", "RotationReport", "forget_master", "key_ids", "rotate_master"]


def key_ids(settings: Settings) -> tuple[bytes, ...]:
    """Return the ids of the master keys of the settings; the first one encrypts."""
    return tuple(map(key_id_of, settings.master_keys))


async def rotate_master(
    settings: Settings, on_progress: Callable[[int, int], None]
) -> RotationReport:
    """Encrypt with the first master key what other keys encrypted. Raises `StartError`.

    `on_progress` is called after each batch with the number of rows done, and of all rows.
    """
    async with running_database(settings) as database:
        rotation = KeyRotation(database, TenantSecrets(SecretBox(settings.master_keys)))
        whole = await rotation.left()
        return await rotation.run(lambda done: on_progress(done, whole))


async def forget_master(settings: Settings, key_id: bytes) -> bool:
    """Let nodes start without a lost master key; return whether anything was encrypted with it."""
    async with running_database(settings) as database:
        return await forget_master_key(database, key_id)
