"""The master key's work that needs no node: rotated, or forgotten, on the database itself."""

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
    """What names the master keys of the settings; the first one seals."""
    return tuple(map(key_id_of, settings.master_keys))


async def rotate_master(settings: Settings, tell: Callable[[int, int], None]) -> RotationReport:
    """Seal anew, with the first master key, what others have sealed. Raises `StartError`.

    `tell` hears after each batch how much has been done, and of how much.
    """
    async with running_database(settings) as database:
        rotation = KeyRotation(database, TenantSecrets(SecretBox(settings.master_keys)))
        whole = await rotation.left()
        return await rotation.run(lambda done: tell(done, whole))


async def forget_master(settings: Settings, key_id: bytes) -> bool:
    """Let nodes start without a master key that is lost; whether anything was sealed with it."""
    async with running_database(settings) as database:
        return await forget_master_key(database, key_id)
