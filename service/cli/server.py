"""The way to a running service: a client, and its errors as sentences.

`HOOKLINE_TOKEN` is read here and nowhere else; it is no argument, since arguments are seen by every
user of a machine.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from hookline import HooklineClient
from hookline.errors import HooklineError, UnavailableError
from service.cli.failure import CommandError


def ask(target: str, questions: Callable[[HooklineClient], Awaitable[int]]) -> int:
    """Connect and run a command's calls; the exit code."""
    return asyncio.run(_ask(target, questions))


async def _ask(target: str, questions: Callable[[HooklineClient], Awaitable[int]]) -> int:
    try:
        client = HooklineClient(target, token=os.environ.get("HOOKLINE_TOKEN") or None)
    except ValueError as error:
        raise CommandError(f"{target}: {error}") from error
    async with client:
        try:
            return await questions(client)
        except UnavailableError as error:
            if error.reason:
                raise CommandError(f"{target} answered {error}", code=1) from error
            raise CommandError(
                f"nothing answers at {target}: start `hookline dev`, or name the service with"
                " --server HOST:PORT",
                code=1,
            ) from error
        except HooklineError as error:
            raise CommandError(f"{target} answered {error}", code=1) from error
