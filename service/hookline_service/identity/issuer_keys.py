"""An issuer's key set that is fetched by HTTP, kept, and fetched again.

Fetched when the node starts, every `refresh_s`, and when a token names a key that is not known,
since issuers begin to use a new key whenever they like; for that at most once in `RENEWAL_S`, so
that nobody can make us ask by sending nonsense. Calls wait for one fetch together. What was fetched
counts while the issuer is away, for a day; then it is nobody's word any more.

The request is the standard library's: no redirect is followed, no proxy of the environment asked,
nothing read beyond a bound, and certificates are verified by the system's roots (`SSL_CERT_FILE`
names others). Plain http is for this machine alone.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

import structlog

from hookline_service.identity.files import SourceError, SourceState
from hookline_service.identity.key_set import KEYS, KeySet, parse_key_set

RENEWAL_S: Final = 30.0
"""Between two fetches for the sake of unknown keys."""
RETRY_S: Final = 10.0
"""After a fetch that failed."""
STALE_S: Final = 24 * 3_600.0
"""How long a set counts after it was last fetched."""
FETCH_TIMEOUT_S: Final = 10.0
MAX_SET_BYTES: Final = 256 * 1024

_log = structlog.get_logger(__name__)


class FetchedKeys:
    """A key set at a URL."""

    def __init__(
        self, url: str, refresh_s: float, *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._url = url
        self._refresh_s = refresh_s
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._due_s = monotonic_s()
        self._fetched_s = 0.0
        self._renewed_s: float | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._keys: KeySet | None = None
        self._loaded_at: datetime | None = None
        self._problem = ""

    def current(self) -> KeySet | None:
        """What counts; None: nothing, for it was never fetched, or too long ago."""
        if self._keys is None or self._monotonic_s() - self._fetched_s > STALE_S:
            return None
        return self._keys

    async def renew(self) -> None:
        """Fetch it, unless that was done a moment ago; return when it is there, or has failed."""
        if self._renewing is None or self._renewing.done():
            now_s = self._monotonic_s()
            if self._renewed_s is not None and now_s - self._renewed_s < RENEWAL_S:
                return
            self._renewed_s = now_s
            self._renewing = asyncio.create_task(asyncio.to_thread(self.fetch), name="renew-keys")
        await asyncio.shield(self._renewing)

    def look(self) -> None:
        """Fetch it, if it is time; may block."""
        if self._monotonic_s() >= self._due_s:
            self.fetch()

    def fetch(self) -> None:
        """Fetch it now; may block. What is wrong is kept, and said once."""
        with self._lock:
            try:
                keys = parse_key_set(fetch(self._url), self._url)
            except SourceError as error:
                self._due_s = self._monotonic_s() + min(RETRY_S, self._refresh_s)
                if str(error) != self._problem:
                    self._problem = str(error)
                    _log.warning("source_rejected", setting=KEYS, reason=self._problem)
                return
            self._fetched_s = self._monotonic_s()
            self._due_s = self._fetched_s + self._refresh_s
            self._problem = ""
            if keys != self._keys:
                self._keys, self._loaded_at = keys, datetime.now(UTC)
                _log.info("source_reloaded", setting=KEYS, summary=keys.summary)

    def state(self) -> SourceState:
        """What is known of it."""
        keys = self.current()
        summary = f"no keys from {self._url}" if keys is None else keys.summary
        return SourceState(KEYS, summary, self._loaded_at, None, self._problem)


def is_fit_url(url: str) -> bool:
    """Whether keys may be fetched from it: https, or http from this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.fragment or not url.isascii():
        return False
    if any(letter <= " " for letter in url):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def fetch(
    url: str, context: ssl.SSLContext | None = None, *, timeout_s: float = FETCH_TIMEOUT_S
) -> bytes:
    """GET a small document. Raises `SourceError`: it is not to be had, and why.

    `context`: how https is verified; by default, by the system's roots.
    """
    parts = urlsplit(url)
    host, path = parts.hostname or "", parts.path or "/"
    connection = (
        http.client.HTTPSConnection(
            host,
            parts.port,
            timeout=timeout_s,
            context=context or ssl.create_default_context(),
        )
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
    )
    try:
        connection.connect()
        with _cut_off(connection.sock, timeout_s) as was_cut_off:
            connection.request(
                "GET",
                f"{path}?{parts.query}" if parts.query else path,
                headers={"accept": "application/json", "accept-encoding": "identity"},
            )
            answer = connection.getresponse()
            content = answer.read(MAX_SET_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SourceError(f"{KEYS}: {url} cannot be fetched: {error!r}") from error
    finally:
        connection.close()
    if was_cut_off.is_set():
        raise SourceError(
            f"{KEYS}: {url} cannot be fetched: it was not there within {timeout_s:g} s"
        )
    if answer.status != http.HTTPStatus.OK:
        raise SourceError(f"{KEYS}: {url} answered {answer.status}")
    if len(content) > MAX_SET_BYTES:
        raise SourceError(f"{KEYS}: {url} is larger than {MAX_SET_BYTES:,} bytes")
    return content


@contextmanager
def _cut_off(connected: socket.socket, timeout_s: float) -> Iterator[threading.Event]:
    """End a connection that is still in use after so long; the event tells of it.

    A socket's own timeout is for each read, and some send a byte now and then.
    """
    was_cut_off = threading.Event()

    def end() -> None:
        was_cut_off.set()
        with suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield was_cut_off
    finally:
        timer.cancel()
