"""Reading one answer after another from a connection's bytes, within limits. No sockets here.

Theory. A strict parser (llhttp) finds the parts; this file decides what they mean for an attempt:

- The final answer's status decides as soon as its head is complete. What becomes of the body (cut
  off, malformed, larger than is read) decides only whether the connection can be used again.
- Head, interim answers and body together are read up to `limit_bytes`, and no further. The body is
  never decoded, and only its first `kept_body_bytes` are kept.
- What is no HTTP/1.x answer, or never completes a head within the limit, is a `BadAnswerError`.
- Bytes behind a complete answer are never read as another answer: they end the connection.

Sources: RFC 9112 sections 4, 6.3 and 9.2; RFC 9110 section 15.2 (interim answers).
"""

from __future__ import annotations

import httptools

DEFAULT_LIMIT_BYTES = 65_536
DEFAULT_KEPT_BODY_BYTES = 1_024
MAX_HEADER_FIELDS = 256

_PROTOCOL = b"HTTP/1."
_VERSIONS = frozenset({"1.1", "1.0"})
_FINAL_STATUS_MIN = 200
_INTERIM_STATUS_MIN = 100
_SWITCHING_PROTOCOLS = 101


class BadAnswerError(Exception):
    """What came is no answer of HTTP/1.1, or larger in its head than is read; the text tells."""


class AnswerReader:
    """The answers of one connection, one at a time: `begin`, `feed` until True, then look."""

    __slots__ = (
        "_head_room",
        "_interim",
        "_kept",
        "_kept_body_bytes",
        "_kept_room",
        "_lead",
        "_limit_bytes",
        "_parser",
        "_refusal",
        "_room",
        "head_complete",
        "headers",
        "is_complete",
        "is_reusable",
        "status",
    )

    def __init__(
        self,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        kept_body_bytes: int = DEFAULT_KEPT_BODY_BYTES,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._kept_body_bytes = kept_body_bytes
        self._parser = httptools.HttpResponseParser(self)
        self.begin()

    def begin(self) -> None:
        """Expect a new answer. The one before was complete and reusable, or there was none."""
        self._room = self._limit_bytes
        self._lead: bytes | None = b""
        self._head_room = MAX_HEADER_FIELDS
        self._interim = False
        self._kept: list[bytes] = []
        self._kept_room = self._kept_body_bytes
        self._refusal = ""
        self.head_complete = False
        self.is_complete = False
        self.is_reusable = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    @property
    def was_started(self) -> bool:
        """Whether any byte of the answer has come."""
        return self._room < self._limit_bytes

    @property
    def body(self) -> bytes:
        """The first bytes of the body, at most `kept_body_bytes`, as they came."""
        return b"".join(self._kept)

    def feed(self, data: bytes) -> bool:
        """Take bytes as they come; True once the answer is settled. Raises `BadAnswerError`.

        After True, `is_reusable` tells whether the connection may carry another request. After an
        exception, or True without `is_reusable`, the reader is spent.
        """
        if self._lead is not None:
            self._check_lead(data)
        if len(data) > self._room:
            data = data[: self._room]
        self._room -= len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.is_reusable = False
            if self._refusal:
                raise BadAnswerError(self._refusal) from None
            if self.head_complete:
                return True
            raise BadAnswerError(f"the answer is no HTTP/1.1: {error}") from None
        if self.is_complete:
            return True
        if self._room > 0:
            return False
        if self.head_complete:
            return True
        raise BadAnswerError(f"no complete answer head within {self._limit_bytes} bytes")

    def _check_lead(self, data: bytes) -> None:
        # The parser would also take RTSP's and ICE's answers, and skip empty lines in front.
        lead = (self._lead or b"") + data[: len(_PROTOCOL)]
        if lead.startswith(_PROTOCOL):
            self._lead = None
        elif _PROTOCOL.startswith(lead):
            self._lead = lead
        else:
            raise BadAnswerError("the answer does not begin with HTTP/1.")

    # What follows is called by the parser, in the middle of `feed`.

    def on_message_begin(self) -> None:
        """A status line begins: the first, the one after an interim answer, or one too many."""
        if self.is_complete:
            self.is_reusable = False
            # Stops the parser; `feed` keeps the answer that is complete.
            raise BadAnswerError("bytes behind the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field, or a trailer field, which is dropped."""
        if self.head_complete:
            return
        self._head_room -= 1
        if self._head_room < 0:
            self._refuse(f"the answer has more than {MAX_HEADER_FIELDS} header fields")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete: the status is known, final or interim."""
        status = self._parser.get_status_code()
        if self._parser.get_http_version() not in _VERSIONS:
            self._refuse("the answer is of another HTTP version than 1.1")
        if status >= _FINAL_STATUS_MIN:
            self.status = status
            self.head_complete = True
        elif status == _SWITCHING_PROTOCOLS:
            self._refuse("the answer switches to another protocol, which nobody asked for")
        elif status < _INTERIM_STATUS_MIN:
            self._refuse("the answer's status is no HTTP status")
        else:
            self._interim = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body, without its framing."""
        if self._kept_room > 0:
            kept = data[: self._kept_room]
            self._kept_room -= len(kept)
            self._kept.append(kept)

    def on_message_complete(self) -> None:
        """The answer ends here by its own framing; `should_keep_alive` is only right now."""
        if self._interim:
            self._interim = False
            self.headers.clear()
            return
        self.is_complete = True
        self.is_reusable = self._parser.should_keep_alive()

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        raise BadAnswerError(reason)
