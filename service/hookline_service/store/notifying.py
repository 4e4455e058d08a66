"""LISTEN and NOTIFY, on a connection of their own.

A notification costs the commit of a transaction. Nothing else is written on this connection, so it
sets `synchronous_commit = off`: a notification needs no durability.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from hookline_service.store.database import Connection, Session
from hookline_service.store.statements import Statements

SQL = Statements("notifying")

MAX_PAYLOAD_BYTES = 7_999
"""What Postgres carries in one notification."""


class NotifyStore:
    """Sends and receives notifications; stores none."""

    def __init__(self, session: Session, timeout_s: float = 5.0) -> None:
        self._session = session
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._channels: set[str] = set()
        self._receive: Callable[[str, str], None] = lambda _channel, _payload: None

    async def listen(self, channels: Collection[str], receive: Callable[[str, str], None]) -> bool:
        """Listen on these channels and no others; return whether notifications may be missing.

        `receive` is called with the channel and payload of each. Call this again from time to time:
        it checks the connection, and listens on a new one if it was lost.
        """
        self._receive = receive
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
        self._receive(channel, str(payload))

    async def notify(self, messages: Sequence[tuple[str, str]]) -> None:
        """Send notifications, each (channel, payload), in one statement."""
        await self._session.fetch(
            SQL.notify, [channel for channel, _ in messages], [payload for _, payload in messages]
        )

    async def close(self) -> None:
        """Stop listening, and close the connection."""
        self._connection = None
        await self._session.close()
