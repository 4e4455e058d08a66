"""HTTP/2 frames written by hand (RFC 9113): a library of the protocol refuses to break it."""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Kind(IntEnum):
    """The types of frames (RFC 9113 section 6)."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


DATA, HEADERS, RST_STREAM, SETTINGS = Kind.DATA, Kind.HEADERS, Kind.RST_STREAM, Kind.SETTINGS
PING, WINDOW_UPDATE, CONTINUATION = Kind.PING, Kind.WINDOW_UPDATE, Kind.CONTINUATION
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE, MAX_WINDOW, DEFAULT_WINDOW = 4, (1 << 31) - 1, 65_535
MAX_FRAME_BYTES, BURST_BYTES = 16_384, 1 << 18


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that was received."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes | memoryview = b"") -> bytes:
    """One frame, whether it makes sense or not."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame; the names are those of `_SETTINGS`."""
    return frame(
        SETTINGS,
        payload=b"".join(struct.pack(">HI", _SETTINGS[name], values[name]) for name in values),
    )


_SETTINGS = {"initial_window": INITIAL_WINDOW_SIZE, "table_size": 1, "max_frame": 5}


def window_update(stream: int, size: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


def literal(name: str, value: str | bytes) -> bytes:
    """One header field, literal and not indexed (RFC 7541 section 6.2.2), no Huffman coding."""
    data = value if isinstance(value, bytes) else value.encode()
    return b"\x00" + _text(name.encode()) + _text(data)


def _text(data: bytes) -> bytes:
    return _integer(len(data), 7) + data


def _integer(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    out = bytearray([most])
    value -= most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def request_headers(method: str, token: str | None = None, *more: tuple[str, str]) -> bytes:
    """The header block of a gRPC call to `/package.Service/Method`."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "hookline"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *([("authorization", f"Bearer {token}")] if token else []),
        *more,
    ]
    return b"".join(literal(name, value) for name, value in fields)


def message(data: bytes, *, compressed: bool = False) -> bytes:
    """A message with gRPC's five bytes before it."""
    return struct.pack(">BI", int(compressed), len(data)) + data


def data_frames(stream: int, data: bytes | memoryview, *, ends: bool = True) -> bytes:
    """DATA frames of at most 16 KiB each."""
    pieces = [data[at : at + MAX_FRAME_BYTES] for at in range(0, len(data), MAX_FRAME_BYTES)]
    last = len(pieces) - 1
    return b"".join(
        frame(DATA, END_STREAM if ends and number == last else 0, stream, piece)
        for number, piece in enumerate(pieces)
    )


class Connection:
    """A connection that has sent its preface; it answers nothing by itself.

    `discard`, running as a task, reads what comes and keeps the windows that the peer grants.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next_stream = 1
        self._begun = bytearray()
        self._initial_window = DEFAULT_WINDOW
        self._windows: dict[int, int] = {0: DEFAULT_WINDOW}
        self._has_news = asyncio.Condition()
        self._ended_streams: set[int] = set()
        self._is_closed = False

    @classmethod
    async def open(cls, host: str, port: int, first: bytes | None = None) -> Self:
        """Connect; `first` is what follows the preface: the client's SETTINGS, empty by default."""
        reader, writer = await asyncio.open_connection(host, port)
        connection = cls(reader, writer)
        await connection.send(PREFACE + (settings() if first is None else first))
        return connection

    def new_stream(self) -> int:
        """The number of the next stream of a client."""
        number, self._next_stream = self._next_stream, self._next_stream + 2
        self._windows[number] = self._initial_window
        return number

    def begin(self, data: bytes) -> None:
        """Add to what the next `send` writes first."""
        self._begun += data

    async def send(self, data: bytes) -> None:
        """Write; waits while the peer takes no more. Raises ConnectionError once it hung up."""
        if self._is_closed:
            raise ConnectionResetError
        self._writer.write(bytes(self._begun) + data)
        self._begun.clear()
        await self._writer.drain()
        await asyncio.sleep(0)  # draining what is not full lets no other task run

    async def send_data(self, stream: int, data: bytes | memoryview, *, ends: bool = True) -> None:
        """Write DATA frames within the windows that the peer grants."""
        await self.send(b"")
        at = 0
        while at < len(data):
            async with self._has_news:
                await self._has_news.wait_for(lambda: self._may_send(stream))
            if self._is_closed or stream in self._ended_streams:
                return
            size = min(len(data) - at, self._windows[0], self._windows[stream], BURST_BYTES)
            self._windows[0] -= size
            self._windows[stream] -= size
            piece, at = data[at : at + size], at + size
            await self.send(data_frames(stream, piece, ends=ends and at == len(data)))

    def _may_send(self, stream: int) -> bool:
        is_over = self._is_closed or stream in self._ended_streams
        return is_over or min(self._windows[0], self._windows[stream]) > 0

    async def ended(self, stream: int) -> None:
        """Wait until the peer has ended a stream, or the connection."""
        async with self._has_news:
            await self._has_news.wait_for(lambda: self._is_closed or stream in self._ended_streams)

    async def closed(self) -> None:
        """Wait until the peer has ended the connection."""
        async with self._has_news:
            await self._has_news.wait_for(lambda: self._is_closed)

    async def pause(self, seconds: float) -> None:
        """Wait, unless the connection ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.closed()

    async def receive(self) -> Frame | None:
        """The next frame; None: the connection has ended."""
        try:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        stream = int.from_bytes(head[5:9], "big")
        return Frame(head[3], head[4], stream, payload)

    async def discard(self) -> None:
        """Read and forget, until the connection ends."""
        while (received := await self.receive()) is not None:
            is_news = True
            match received.kind:
                case Kind.WINDOW_UPDATE:
                    size = int.from_bytes(received.payload, "big")
                    if received.stream in self._windows:
                        self._windows[received.stream] += size
                case Kind.SETTINGS:
                    self._take(received.payload)
                case Kind.RST_STREAM:
                    self._ended_streams.add(received.stream)
                case Kind.HEADERS | Kind.DATA if received.flags & END_STREAM:
                    self._ended_streams.add(received.stream)
                case _:
                    is_news = False
            if is_news:
                await self._notify()
        self._is_closed = True
        await self._notify()

    def _take(self, values: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", values):
            if name == INITIAL_WINDOW_SIZE:
                for stream in self._windows.keys() - {0}:
                    self._windows[stream] += value - self._initial_window
                self._initial_window = value

    async def _notify(self) -> None:
        async with self._has_news:
            self._has_news.notify_all()

    def stop_reading(self) -> None:
        """Take nothing more from the socket."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Hang up."""
        self._writer.transport.abort()

    async def aclose(self) -> None:
        """Hang up, and wait until that is done."""
        self.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
