"""API keys created directly in the database, such as the first one of a deployment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from hookline_service.app.node import master_keys_of
from hookline_service.app.running import running_database
from hookline_service.config import Settings
from hookline_service.domain.api_key import ApiKey
from hookline_service.store.api_keys import ApiKeys, NewApiKey
from hookline_service.store.deployment_keys import API_KEYS, load_or_create_deployment_key
from hookline_service.store.master_keys import check_master_keys
from hookline_service.store.secrets import SecretBox


async def create_api_key(
    settings: Settings, draft_at: Callable[[datetime], NewApiKey]
) -> tuple[ApiKey, str]:
    """Create the key that `draft_at` returns for the database's time; return it and its token.

    Uses the database of the settings, or else the embedded one that `hookline dev` runs in their
    data directory. Raises `StartError`.
    """
    async with running_database(settings) as database:
        box = SecretBox(master_keys_of(settings))
        await check_master_keys(database, box)
        keys = ApiKeys(database, await load_or_create_deployment_key(database, box, API_KEYS))
        return await keys.create(draft_at(await keys.now()))
