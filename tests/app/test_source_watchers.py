"""Watched sources: an expiry is logged in time, and a failed read does not end the watch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hookline_service.app import source_watchers
from hookline_service.app.source_watchers import EXPIRY_WARNING, SourceWatcher
from hookline_service.config import Role, Settings
from hookline_service.identity.files import FollowedFiles
from tests.certificates import Authority
from tests.waiting import until


class Looks:
    """Counts them; the first ones may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: int = 0) -> None:
        self.count = 0
        look = FollowedFiles.look

        def counted(files: FollowedFiles[Any]) -> None:
            self.count += 1
            if self.count <= failing:
                raise ZeroDivisionError
            look(files)

        monkeypatch.setattr(FollowedFiles, "look", counted)
        monkeypatch.setattr(source_watchers, "LOOK_S", 0.01)

    async def more(self) -> None:
        """Wait for some; the last of them may not have been judged yet."""
        enough = self.count + 4
        await until(lambda: self.count >= enough, "it is looked again")


@asynccontextmanager
async def followed(authority: Authority, lifetime: timedelta) -> AsyncIterator[None]:
    """A certificate that lasts so long, while inside."""
    certificate, key = authority.issue("server", "127.0.0.1", lifetime=lifetime)
    environ = {"HOOKLINE_TLS_CERT": str(certificate), "HOOKLINE_TLS_KEY": str(key)}
    sources = SourceWatcher(Settings.from_environ(environ, Role.DEV))
    sources.start()
    try:
        yield
    finally:
        await sources.stop()


def logged(logs: list[Any], event: str) -> int:
    return sum(line["event"] == event for line in logs)


async def test_each_certificate_that_expires_soon_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, looks = Authority(tmp_path), Looks(monkeypatch)
    soon, later = EXPIRY_WARNING - timedelta(hours=1), EXPIRY_WARNING + timedelta(hours=1)
    with capture_logs() as logs:
        async with followed(authority, later):
            await looks.more()
            assert logged(logs, "certificate_expires_soon") == 0
            for count in (1, 2):
                authority.issue("server", "127.0.0.1", lifetime=soon + timedelta(minutes=count))
                await until(
                    lambda: logged(logs, "certificate_expires_soon") >= count,  # noqa: B023 - awaited within the loop
                    "it is logged",
                )
                await looks.more()
                assert logged(logs, "certificate_expires_soon") == count


async def test_a_failed_read_is_logged_and_the_next_one_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch, failing=1)
    with capture_logs() as logs:
        async with followed(Authority(tmp_path), timedelta(days=90)):
            await looks.more()
    assert logged(logs, "source_watch_broken") == 1
