"""Construction of authentication: the sources of identity, what they need, and TLS."""

from __future__ import annotations

from collections.abc import Sequence

from hookline_service.api.middleware.api_key_source import ApiKeySource
from hookline_service.api.middleware.authentication import Anonymous, IdentitySource
from hookline_service.app.engine import Engine
from hookline_service.app.source_watchers import SourceWatcher
from hookline_service.config import Settings
from hookline_service.pipeline.clock import Clock
from hookline_service.store.api_keys import ApiKeys
from hookline_service.store.database import Database
from hookline_service.store.deployment_keys import API_KEYS, load_or_create_deployment_key
from hookline_service.store.secrets import SecretBox


class Authenticator:
    """The sources of identity of a node: API keys, tokens, certificates; or none, if it is off."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        engine: Engine,
        clock: Clock,
        deployment_key: bytes,
    ) -> None:
        self.api_keys = ApiKeys(database, deployment_key)
        self.api_key_source = ApiKeySource(
            engine.key_lookup, deployment_key, clock, max_cached=settings.max_cached_keys
        )
        self.source_watcher = SourceWatcher(settings)
        self._is_auth_on = settings.is_auth_on

    @classmethod
    async def make(
        cls,
        settings: Settings,
        database: Database,
        box: SecretBox,
        engine: Engine,
        clock: Clock,
    ) -> Authenticator:
        """Return an authenticator with the deployment's key.

        Raise `SealedSecretError` where the key cannot be decrypted, and `SourceError` for a file
        that cannot be used.
        """
        key = await load_or_create_deployment_key(database, box, API_KEYS)
        return cls(settings, database, engine, clock, key)

    @property
    def identities(self) -> Sequence[IdentitySource]:
        """The sources of identity, in the order in which they are asked."""
        if not self._is_auth_on:
            return [Anonymous()]
        return [self.api_key_source, *self.source_watcher.identity_sources()]

    def start(self) -> None:
        """Begin to read keys and to watch sources."""
        self.api_key_source.start()
        self.source_watcher.start()

    async def stop(self) -> None:
        """Stop both."""
        await self.source_watcher.stop()
        await self.api_key_source.stop()
