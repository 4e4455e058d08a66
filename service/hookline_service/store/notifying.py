"""LISTEN and NOTIFY, on a connection of their own.

Nothing else is written on it, so it does not wait for the disk: a notification costs a
transaction's commit, which would otherwise be flushed for the sake of mere word of mouth.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from hookline_service.store.database import Connection, Session
from hookline_service.store.statements import Statements

SQL = Statements("notifying")

MAX_PAYLOAD_BYTES = 7_999
"""What Postgres carries in one notification."""


class NotifyStore:
    """Says and hears; nothing is kept of either."""

    def __init__(self, session: Session, timeout_s: float = 5.0) -> None:
        self._session = session
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._channels: set[str] = set()
        self.on_heard: Callable[[str, str], None] = lambda _channel, _payload: None
        """Called with the channel and what was said on it."""

    async def listen(self, channels: Collection[str]) -> bool:
        """Hear these channels and no others; whether something may have been missed before.

        To be called again from time to time: it asks the connection whether it lives, and where it
        was lost it hears again on another.
        """
        async with self._session.connection(self._timeout_s) as connection:
            if connection is not self._connection:
                await connection.execute(SQL.no_flush)
                self._connection, self._channels = connection, set()
            for channel in self._channels - set(channels):
                await connection.remove_listener(channel, self._pass_on)
            for channel in channels:
                await connection.add_listener(channel, self._pass_on)
            if self._channels == set(channels):
                await connection.execute(SQL.ping)
                return False
            self._channels = set(channels)
            return True

    def _pass_on(self, _connection: object, _pid: int, channel: str, payload: object) -> None:
        self.on_heard(channel, str(payload))

    async def notify(self, messages: Sequence[tuple[str, str]]) -> None:
        """Say (channel, payload) each, in one statement."""
        await self._session.fetch(
            SQL.notify, [channel for channel, _ in messages], [said for _, said in messages]
        )

    async def close(self) -> None:
        """Hear no more, and close the connection."""
        self._connection = None
        await self._session.close()
