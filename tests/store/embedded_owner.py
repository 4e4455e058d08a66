"""A process that owns an embedded Postgres, for tests that kill it or run it as another user.

Started by path. Prints one line of JSON once it has started, or could not; then it waits for its
standard input to end, and stops. With a user's name as a second argument it becomes that user.
"""

import asyncio
import json
import os
import pwd
import sys
import tempfile
from pathlib import Path

from hookline_service.store.embedded import EmbeddedPostgres, EmbeddedPostgresError


def say(**words: object) -> None:
    """Write one line for the test to read."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


async def own(data_dir: Path) -> None:
    """Start, wait for the end of standard input, stop."""
    postgres = EmbeddedPostgres(data_dir)
    try:
        url = await postgres.start()
    except EmbeddedPostgresError as error:
        say(error=str(error))
        return
    say(url=url, cluster=str(postgres.cluster), adopted=postgres.adopted)
    await asyncio.to_thread(sys.stdin.read)
    await postgres.stop()


async def start_once(data_dir: Path) -> None:
    """Start Postgres, stop it, and remove its data."""
    postgres = EmbeddedPostgres(data_dir)
    try:
        await postgres.start()
    finally:
        await postgres.remove()


def become(name: str) -> None:
    """Switch to this user for the rest of the process.

    It may not reach this interpreter's library, so what is imported late is imported before: by a
    start as root.
    """
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        asyncio.run(start_once(Path(directory, "data")))
    user = pwd.getpwnam(name)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        become(sys.argv[2])
    asyncio.run(own(Path(sys.argv[1])))
