"""Pages of lists: how long one is, where it ends, and the token that asks for the next.

A page token holds a cursor and a keyed hash over the cursor and everything that the list was asked
for: a token that another key made, that belongs to other parameters, or that was touched, does not
verify. It is not encrypted; a cursor holds only what the page itself showed.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol, TypeVar
from uuid import UUID

from hookline_service.api.middleware.errors import not_implemented
from hookline_service.domain.errors import Reason, Violation, invalid
from hookline_service.domain.limits import Limits

NEWEST = UUID(int=(1 << 128) - 1)
"""Where a list of ids that goes from the newest on begins."""

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
    """What a list request asks for: how many, and after what (empty: from the beginning)."""

    size: int
    cursor: bytes = b""


class Pages:
    """Reads and makes page tokens; every node of a deployment has the same key."""

    def __init__(self, key: bytes, limits: Limits) -> None:
        self._key = key
        self._limits = limits

    def asked(
        self, request: _ListRequest, binding: Sequence[str], violations: list[Violation]
    ) -> Page:
        """The page that a list request asks for; what is wrong with it stands in `violations` too.

        Raises `InvalidArgumentError` with all of them, and `UnimplementedError` for a `filter`,
        which no list has yet.
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
        """The page that a request's `page_size` and `page_token` ask for; adds what is wrong.

        `binding`: the method and every other parameter of the list, in a fixed order.
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
                    "is not the next_page_token of a list with these parameters",
                    Reason.PAGE_TOKEN_INVALID,
                )
            )
        return Page(size, cursor or b"")

    def token(self, cursor: bytes, binding: Sequence[str]) -> str:
        """The token that asks for what follows `cursor` in the list of these parameters."""
        tag = self._tag(cursor, binding)
        return _written(tag + cursor)

    def cut(self, messages: Sequence[_Message]) -> Sequence[_Message]:
        """As many of the messages as a page may hold in bytes; one at least."""
        room = self._limits.max_page_bytes
        for index, message in enumerate(messages):
            room -= message.ByteSize()
            if room < 0 and index:
                return messages[:index]
        return messages

    def _verified(self, token: str, binding: Sequence[str]) -> bytes | None:
        if len(token) > _TOKEN_LENGTH_MAX:
            return None
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        if _written(raw) != token:  # base64 has bits to spare, and would take them for nothing
            return None
        tag, cursor = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        return cursor if cursor and hmac.compare_digest(tag, self._tag(cursor, binding)) else None

    def _tag(self, cursor: bytes, binding: Sequence[str]) -> bytes:
        hashed = blake2b(key=self._key, digest_size=_TAG_BYTES)
        for part in (cursor, *(text.encode() for text in binding)):
            hashed.update(len(part).to_bytes(4, "big"))
            hashed.update(part)
        return hashed.digest()


def _written(raw: bytes) -> str:
    """The one way in which a token is written."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
