"""Files that are followed: read again when they change, kept as they were where that is no good.

Theory of operation. Somebody calls `look` every second, in a thread. A file that changed is told by
its modification time, inode and size (a mounted secret is exchanged by a symbolic link), and only
then read. What is good counts at once. What is not is looked at once more before it is spoken of,
since a certificate and its key are two files, and between the two writes they do not fit; then what
counted goes on counting, the log says so once, and `problem` says it for as long as it lasts.

Must not know what the files hold: that is `read`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import structlog

MAX_FILE_BYTES: Final = 1024 * 1024

_log = structlog.get_logger(__name__)


class SourceError(Exception):
    """What a setting points at cannot be used; the text names the setting and says what to do."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """What is known of something that is followed, for operators."""

    setting: str
    """The variable that names it, `HOOKLINE_TLS_CERT`."""
    summary: str
    """What counts at present, in a few words."""
    loaded_at: datetime | None
    """Since when it counts; None: nothing does."""
    expires_at: datetime | None
    """When it ends by itself; None: never."""
    problem: str
    """Why what is there now does not count; empty: it does."""


class Followed(Protocol):
    """What a node looks at again and again."""

    def look(self) -> None:
        """Look whether it changed; may block, raises nothing."""

    def state(self) -> SourceState:
        """What is known of it."""


class Described(Protocol):
    """What was read, as far as it tells of itself."""

    @property
    def summary(self) -> str:
        """In a few words, none of them secret."""

    @property
    def expires_at(self) -> datetime | None:
        """When it ends by itself."""


T = TypeVar("T", bound=Described)
_Signature = tuple[tuple[int, int, int] | None, ...]


class FollowedFiles(Generic[T]):
    """What some files say together."""

    def __init__(self, setting: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Read them; raises `SourceError`, as `read` does."""
        self._setting = setting
        self._paths = tuple(paths)
        self._read = read
        self._judged = self._signature()
        self._doubted: _Signature | None = None
        self._problem = ""
        self._loaded_at = datetime.now(UTC)
        self.current = read()
        """What counts. Replaced as a whole, so that any thread may read it."""

    def look(self) -> None:
        """Read the files again if they changed."""
        signature = self._signature()
        if signature == self._judged:
            return
        try:
            value = self._read()
        except SourceError as error:
            self._doubt(signature, str(error))
            return
        if self._signature() != signature:
            return  # they are being written: the next look will tell
        self._judged, self._doubted, self._problem = signature, None, ""
        if value != self.current:
            self.current, self._loaded_at = value, datetime.now(UTC)
            _log.info("source_reloaded", setting=self._setting, summary=value.summary)

    def state(self) -> SourceState:
        """What is known of them."""
        current = self.current
        return SourceState(
            self._setting, current.summary, self._loaded_at, current.expires_at, self._problem
        )

    def _doubt(self, signature: _Signature, problem: str) -> None:
        if signature != self._doubted:
            self._doubted = signature
            return
        self._judged = signature
        if problem != self._problem:
            self._problem = problem
            _log.warning("source_rejected", setting=self._setting, reason=problem)

    def _signature(self) -> _Signature:
        return tuple(_signature_of(path) for path in self._paths)


def _signature_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def read_file(setting: str, path: Path) -> bytes:
    """A small file's content. Raises `SourceError`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SourceError(
            f"{setting} names {path}, which cannot be read: {error.strerror or error}"
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise SourceError(f"{setting} names {path}, which is larger than {MAX_FILE_BYTES:,} bytes")
    return content
