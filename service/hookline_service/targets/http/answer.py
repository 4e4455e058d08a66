"""The parser of responses: one after another from a connection's bytes, within limits; no I/O.

Theory. A strict parser (llhttp) finds the parts; this file decides their meaning for an attempt:

- The final response's status decides as soon as its head is complete. A body that is cut off,
  malformed or too large only prevents the connection from being used again.
- Head, interim responses and body together are read up to `limit_bytes`. The body is never decoded,
  and only its first `kept_body_bytes` are kept.
- A response that is not HTTP/1.x, or whose head exceeds the limit, is a `BadAnswerError`.
- Bytes after a complete response are never read as another response: they end the connection.

Sources: RFC 9112 sections 4, 6.3 and 9.2; RFC 9110 section 15.2 (interim responses).
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
    """A response that is not HTTP/1.1, or whose head is too large; the text says which."""


class AnswerReader:
    """The responses of one connection: call `begin`, then `feed` until it returns True."""

    __slots__ = (
        "_bytes_left",
        "_header_fields_left",
        "_interim",
        "_kept",
        "_kept_body_bytes",
        "_kept_bytes_left",
        "_lead",
        "_limit_bytes",
        "_parser",
        "_refusal",
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
        """Start a new response. The one before must be complete and reusable."""
        self._bytes_left = self._limit_bytes
        self._lead: bytes | None = b""
        self._header_fields_left = MAX_HEADER_FIELDS
        self._interim = False
        self._kept: list[bytes] = []
        self._kept_bytes_left = self._kept_body_bytes
        self._refusal = ""
        self.head_complete = False
        self.is_complete = False
        self.is_reusable = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    @property
    def was_started(self) -> bool:
        """Whether any byte of the response has arrived."""
        return self._bytes_left < self._limit_bytes

    @property
    def body(self) -> bytes:
        """The first bytes of the body, at most `kept_body_bytes`, not decoded."""
        return b"".join(self._kept)

    def feed(self, data: bytes) -> bool:
        """Parse received bytes; return True once the response is complete. Raises `BadAnswerError`.

        After True, `is_reusable` says whether the connection may carry another request. After an
        exception, or True without `is_reusable`, the reader must not be used again.
        """
        if self._lead is not None:
            self._check_lead(data)
        if len(data) > self._bytes_left:
            data = data[: self._bytes_left]
        self._bytes_left -= len(data)
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
        if self._bytes_left > 0:
            return False
        if self.head_complete:
            return True
        raise BadAnswerError(f"no complete answer head within {self._limit_bytes} bytes")

    def _check_lead(self, data: bytes) -> None:
        # The parser would also accept RTSP and ICE responses, and skip leading empty lines.
        lead = (self._lead or b"") + data[: len(_PROTOCOL)]
        if lead.startswith(_PROTOCOL):
            self._lead = None
        elif _PROTOCOL.startswith(lead):
            self._lead = lead
        else:
            raise BadAnswerError("the answer does not begin with HTTP/1.")

    # Callbacks of the parser, during `feed`.

    def on_message_begin(self) -> None:
        """A status line begins: the first, the one after an interim response, or a surplus one."""
        if self.is_complete:
            self.is_reusable = False
            # Stops the parser; `feed` keeps the complete response.
            raise BadAnswerError("bytes behind the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field; drop a trailer field."""
        if self.head_complete:
            return
        self._header_fields_left -= 1
        if self._header_fields_left < 0:
            self._refuse(f"the answer has more than {MAX_HEADER_FIELDS} header fields")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete: its status is final or interim."""
        status = self._parser.get_status_code()
        if self._parser.get_http_version() not in _VERSIONS:
            self._refuse("the answer is of another HTTP version than 1.1")
        if status >= _FINAL_STATUS_MIN:
            self.status = status
            self.head_complete = True
        elif status == _SWITCHING_PROTOCOLS:
            self._refuse("the answer switches to another protocol, which was not requested")
        elif status < _INTERIM_STATUS_MIN:
            self._refuse("the answer's status is no HTTP status")
        else:
            self._interim = True

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body, without its framing."""
        if self._kept_bytes_left > 0:
            kept = data[: self._kept_bytes_left]
            self._kept_bytes_left -= len(kept)
            self._kept.append(kept)

    def on_message_complete(self) -> None:
        """The response ends by its own framing; `should_keep_alive` is valid only now."""
        if self._interim:
            self._interim = False
            self.headers.clear()
            return
        self.is_complete = True
        self.is_reusable = self._parser.should_keep_alive()

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        raise BadAnswerError(reason)
