"""What the settings point at and may change while a node runs: looked at every second.

A thread does the looking, since a file may be on a disk that does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import grpc
import structlog

from service.api.tls import server_credentials
from service.config import Settings
from service.identity.files import Followed, FollowedFiles, SourceState
from service.identity.server_certificate import CERT, ServerCertificate, read_server_certificate

LOOK_S: Final = 1.0
EXPIRY_WARNING: Final = timedelta(days=14)

_log = structlog.get_logger(__name__)


class Following:
    """Looks at all sources of a node, one after the other."""

    def __init__(self, settings: Settings) -> None:
        """Read what the settings point at; raises `SourceError`."""
        self._sources: list[Followed] = []
        self._certificate: FollowedFiles[ServerCertificate] | None = None
        if (files := settings.tls.files) is not None:
            self._certificate = FollowedFiles(
                CERT, files.paths, lambda: read_server_certificate(files)
            )
            self._sources.append(self._certificate)
        self._warned: set[tuple[str, datetime]] = set()
        self._task: asyncio.Task[None] | None = None

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """TLS with the certificate that counts at each handshake; None: plaintext."""
        certificate = self._certificate
        return None if certificate is None else server_credentials(lambda: certificate.current)

    def states(self) -> Sequence[SourceState]:
        """What is known of each."""
        return [source.state() for source in self._sources]

    def start(self) -> None:
        """Begin to look, where there is anything to look at."""
        if self._sources:
            self._task = asyncio.create_task(self._follow(), name="following")

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            for source in self._sources:
                try:
                    await asyncio.to_thread(source.look)
                    self._warn_of_expiry(source.state())
                except Exception:  # noqa: BLE001 - what counts goes on; the next look may tell
                    _log.exception("following_broken")
            await asyncio.sleep(LOOK_S)

    def _warn_of_expiry(self, state: SourceState) -> None:
        ends = state.expires_at
        if ends is None or (state.setting, ends) in self._warned:
            return
        if ends - datetime.now(UTC) < EXPIRY_WARNING:
            self._warned.add((state.setting, ends))
            _log.warning("source_expires", setting=state.setting, expires_at=ends.isoformat())
