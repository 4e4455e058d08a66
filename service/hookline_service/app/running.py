"""The database of a deployment, for commands that work on it directly and not through a node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hookline_service.app.node import FORESEEN, StartError, sentence_of
from hookline_service.config import Settings
from hookline_service.domain.errors import HooklineError
from hookline_service.store.database import Database, RejectedError
from hookline_service.store.embedded import EmbeddedPostgres
from hookline_service.store.migrations import pending_migrations


@asynccontextmanager
async def running_database(settings: Settings) -> AsyncIterator[Database]:
    """Yield the database of the settings, or the embedded one of a running `hookline dev`.

    It is open and its schema is up to date. Raises `StartError`, also for errors of the body.
    """
    try:
        url = settings.database_url or EmbeddedPostgres(settings.data_dir).url_of_running()
        if url is None:
            raise StartError(
                "HOOKLINE_DATABASE_URL is not set, and no `hookline dev` runs in"
                f" {settings.data_dir}: set it, or start `hookline dev`"
            )
        if await pending_migrations(url):
            raise StartError("the schema is not up to date: run `hookline migrate`")
        database = Database(url, pool_size=1)
        await database.check_server()
        try:
            await database.open()
            yield database
        finally:
            await database.close()
    except (HooklineError, RejectedError, *FORESEEN) as error:
        raise StartError(sentence_of(error)) from error
