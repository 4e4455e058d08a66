"""Watchers of the files and issuer keys that the settings name: each is read again every second.

They are read on a thread, since a disk may not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import grpc
import structlog

from hookline_service.api.middleware.authentication import (
    CertificateSource,
    IdentitySource,
    TokenSource,
)
from hookline_service.api.tls import server_credentials
from hookline_service.config import Settings
from hookline_service.config.tokens import TokenSettings, read_key_file
from hookline_service.identity.client_names import CLIENTS, read_client_names
from hookline_service.identity.files import Followed, FollowedFiles, SourceState
from hookline_service.identity.issuer_keys import FetchedKeys
from hookline_service.identity.key_set import KEYS, FileKeys
from hookline_service.identity.server_certificate import (
    CERT,
    ServerCertificate,
    read_server_certificate,
)
from hookline_service.identity.tokens import KeySource, Tokens

LOOK_S: Final = 1.0
EXPIRY_WARNING: Final = timedelta(days=14)

_log = structlog.get_logger(__name__)


class SourceWatcher:
    """Watches all sources of a node."""

    def __init__(self, settings: Settings) -> None:
        """Read the sources that the settings name. Raise `SourceError`."""
        self._sources: list[Followed] = []
        self._certificate: FollowedFiles[ServerCertificate] | None = None
        self._certificate_source: CertificateSource | None = None
        self._token_source: TokenSource | None = None
        if (files := settings.tls.files) is not None:
            self._certificate = FollowedFiles(
                CERT, files.paths, lambda: read_server_certificate(files)
            )
            self._sources.append(self._certificate)
        if (clients := settings.tls.clients) is not None:
            names = FollowedFiles(CLIENTS, [clients], lambda: read_client_names(clients))
            self._sources.append(names)
            self._certificate_source = CertificateSource(lambda: names.current)
        if (rules := settings.tokens.rules) is not None:
            self._token_source = TokenSource(Tokens(rules, self._issuer_keys(settings.tokens)))
        self._warned: set[tuple[str, datetime]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """Return TLS with the certificate that is current at each handshake; None: plaintext."""
        certificate = self._certificate
        return None if certificate is None else server_credentials(lambda: certificate.current)

    def identity_sources(self) -> Sequence[IdentitySource]:
        """Return the sources of identity, in the order in which they are asked."""
        sources = (self._token_source, self._certificate_source)
        return [source for source in sources if source is not None]

    def _issuer_keys(self, tokens: TokenSettings) -> KeySource:
        match tokens.keys:
            case Path() as path:
                files = FollowedFiles(KEYS, [path], lambda: read_key_file(path))
                self._sources.append(files)
                return FileKeys(files)
            case url:
                fetched = FetchedKeys(str(url), tokens.refresh_s)
                self._sources.append(fetched)
                return fetched

    def states(self) -> Sequence[SourceState]:
        """Return the state of each source."""
        return [source.state() for source in self._sources]

    def start(self) -> None:
        """Begin to watch."""
        for source in self._sources:  # each in its own task: one that hangs delays no other
            self._tasks.append(asyncio.create_task(self._watch(source), name="source watcher"))

    async def stop(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, source: Followed) -> None:
        while True:
            try:
                await asyncio.to_thread(source.look)
                self._warn_of_expiry(source.state())
            except Exception:  # noqa: BLE001 - the last state stays in use, and the next read may succeed
                _log.exception("source_watch_broken")
            await asyncio.sleep(LOOK_S)

    def _warn_of_expiry(self, state: SourceState) -> None:
        ends = state.expires_at
        if ends is None or (state.setting, ends) in self._warned:
            return
        if ends - datetime.now(UTC) < EXPIRY_WARNING:
            self._warned.add((state.setting, ends))
            _log.warning(
                "certificate_expires_soon", setting=state.setting, expires_at=ends.isoformat()
            )
