"""Pagination of lists: page sizes, cursors and page tokens (keyset pagination).

A page token contains a cursor and a keyed hash (MAC) over the cursor and all parameters of the
list. A token of another key or of other parameters, or a modified one, does not verify. It is not
encrypted; a cursor contains only values that the page itself shows.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Protocol, TypeVar
from uuid import UUID

from hookline_service.api.middleware.errors import not_implemented
from hookline_service.domain.errors import Reason, Violation, invalid
from hookline_service.domain.ids import LAST_UUID
from hookline_service.domain.limits import Limits

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_TIME_AND_KEY = (datetime.max.replace(tzinfo=UTC), "")
_TIME_BYTES = 8
_TAG_BYTES = 12
_TOKEN_LENGTH_MAX = 1_024


class _Sized(Protocol):
    def ByteSize(self) -> int: ...


class _ListRequest(Protocol):
    @property
    def page_size(self) -> int: ...
    @property
    def page_token(self) -> str: ...
    @property
    def filter(self) -> str: ...


_Message = TypeVar("_Message", bound=_Sized)


@dataclass(frozen=True, slots=True)
class Page:
    """The requested page: its size, and the cursor after which it begins (empty: at the start)."""

    size: int
    cursor: bytes = b""

    @property
    def before(self) -> UUID:
        """The id before which a list of ids in descending order continues."""
        return UUID(bytes=self.cursor) if self.cursor else LAST_UUID

    @property
    def before_time_and_key(self) -> tuple[datetime, str]:
        """The time and key before which a list by `time_cursor` continues."""
        return _time_and_key_in(self.cursor) if self.cursor else _LAST_TIME_AND_KEY


class Pages:
    """Verifies and creates page tokens; all nodes of a deployment have the same key."""

    def __init__(self, key: bytes, limits: Limits) -> None:
        self._key = key
        self._limits = limits

    def requested(
        self, request: _ListRequest, binding: Sequence[str], violations: list[Violation]
    ) -> Page:
        """Return the requested page.

        Raises `InvalidArgumentError` with the given and the found violations, and
        `UnimplementedError` for a `filter`, which no list supports yet.
        """
        page = self.read(request.page_size, request.page_token, binding, violations)
        if violations:
            raise invalid(violations)
        if request.filter:
            raise not_implemented("filter", field="filter")
        return page

    def read(
        self, page_size: int, page_token: str, binding: Sequence[str], violations: list[Violation]
    ) -> Page:
        """Return the page of a request's `page_size` and `page_token`; adds their violations.

        `binding`: the method and all other parameters of the list, in a fixed order.
        """
        if page_size < 0:
            violations.append(Violation("page_size", "must not be negative"))
        size = min(page_size, self._limits.max_page_size) or self._limits.default_page_size
        if not page_token:
            return Page(size)
        cursor = self._verified(page_token, binding)
        if cursor is None:
            violations.append(
                Violation(
                    "page_token",
                    "must be the next_page_token of a list with the same parameters",
                    Reason.PAGE_TOKEN_INVALID,
                )
            )
        return Page(size, cursor or b"")

    def token(self, cursor: bytes, binding: Sequence[str]) -> str:
        """Return the token of the page after `cursor` in the list with these parameters."""
        tag = self._tag(cursor, binding)
        return _encoded(tag + cursor)

    def cut(self, messages: Sequence[_Message]) -> Sequence[_Message]:
        """Return as many of the messages as fit into the bytes of a page; at least one."""
        left = self._limits.max_page_bytes
        for index, message in enumerate(messages):
            left -= message.ByteSize()
            if left < 0 and index:
                return messages[:index]
        return messages

    def finished(
        self,
        messages: Sequence[_Message],
        binding: Sequence[str],
        cursor_at: Callable[[int], bytes],
        *,
        has_more: bool,
    ) -> tuple[Sequence[_Message], str]:
        """Return the messages that fit into a page, and the token of the next page.

        `cursor_at` returns the cursor of the message at an index. `has_more`: whether the list
        continues after `messages`. The token is empty on the last page.
        """
        kept = self.cut(messages)
        if not has_more and len(kept) == len(messages):
            return kept, ""
        return kept, self.token(cursor_at(len(kept) - 1), binding)

    def _verified(self, token: str, binding: Sequence[str]) -> bytes | None:
        if len(token) > _TOKEN_LENGTH_MAX:
            return None
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        if _encoded(raw) != token:  # base64 ignores unused bits: accept only one form
            return None
        tag, cursor = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        return cursor if cursor and hmac.compare_digest(tag, self._tag(cursor, binding)) else None

    def _tag(self, cursor: bytes, binding: Sequence[str]) -> bytes:
        hashed = blake2b(key=self._key, digest_size=_TAG_BYTES)
        for part in (cursor, *(text.encode() for text in binding)):
            hashed.update(len(part).to_bytes(4, "big"))
            hashed.update(part)
        return hashed.digest()


def _encoded(raw: bytes) -> str:
    """Encode a token; each token has exactly one form."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def time_cursor(time: datetime, key: str) -> bytes:
    """Return the cursor of a row in a list that is ordered by time and key."""
    unix_us = (time - _EPOCH) // timedelta(microseconds=1)
    return unix_us.to_bytes(_TIME_BYTES, "big") + key.encode()


def _time_and_key_in(cursor: bytes) -> tuple[datetime, str]:
    """Return the time and the key in a cursor of `time_cursor`."""
    unix_us = int.from_bytes(cursor[:_TIME_BYTES], "big")
    return _EPOCH + timedelta(microseconds=unix_us), cursor[_TIME_BYTES:].decode()
