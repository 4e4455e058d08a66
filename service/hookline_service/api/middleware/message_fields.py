"""The number of fields in an encoded message, counted before it is decoded.

A field of two bytes becomes an object of hundreds: six megabytes of empty events took 700 MB to
decode. So a message that could have more fields than a node allows is walked first, tag by tag,
into its submessages, and no further than to the bound. Malformed messages are left to the decoder.
Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor

from hookline_service.api.middleware.errors import malformed
from hookline_service.api.middleware.methods import Method

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_START_GROUP: Final = 3
_END_GROUP: Final = 4
_FIXED32: Final = 5
_LEAST_FIELD_BYTES: Final = 2


@dataclass(frozen=True, slots=True)
class MessageReader:
    """Decodes the requests of one method."""

    decode: Callable[[bytes], Any]
    descriptor: Descriptor | None
    """The request's type; None: of an unknown method, whose fields are not counted."""
    tenant_id_in: Callable[[Any], str | None]
    """Returns the tenant that a decoded request names (`Method.tenant_id_in`)."""

    @classmethod
    def of(cls, method: Method | None, decode: Callable[[bytes], Any] | None) -> MessageReader:
        """Return the reader of a method; None: an unknown one."""
        if method is None:
            return cls(decode or bytes, None, lambda _: None)
        return cls(decode or bytes, method.descriptor.input_type, method.tenant_id_in)

    def has_more_fields(self, data: bytes, most: int) -> bool:
        """Return whether `data` has more than `most` fields; it is not decoded."""
        return self.descriptor is not None and has_more_fields(data, self.descriptor, most)

    def __call__(self, data: bytes) -> Any:  # noqa: ANN401 (any message)
        """Decode a request. Raise `malformed()`."""
        try:
            return self.decode(data)
        except Exception:  # noqa: BLE001 (DecodeError, and other errors of a broken message)
            raise malformed() from None


def has_more_fields(data: bytes, descriptor: Descriptor, most: int) -> bool:
    """Return whether a message has more than `most` fields, those of its submessages included.

    Constant time where the message is too short for that.
    """
    if len(data) <= most * _LEAST_FIELD_BYTES:
        return False
    count = 0
    stack: list[tuple[int, int, Descriptor]] = [(0, len(data), descriptor)]
    try:
        while stack:
            position, end, of = stack.pop()
            submessages = _submessages_of(of)
            while position < end:
                tag, position = _varint(data, position)
                count += 1
                if count > most:
                    return True
                kind = tag & 7
                if kind == _BYTES:
                    size, position = _varint(data, position)
                    inner = submessages.get(tag >> 3)
                    if inner is not None and size:
                        stack.append((position, min(position + size, end), inner))
                    position += size
                elif kind == _VARINT:
                    _, position = _varint(data, position)
                elif kind == _FIXED64:
                    position += 8
                elif kind == _FIXED32:
                    position += 4
                elif kind not in (_START_GROUP, _END_GROUP):
                    return False
    except IndexError:  # it ends within a field
        return False
    return False


@lru_cache(maxsize=256)
def _submessages_of(descriptor: Descriptor) -> dict[int, Descriptor]:
    """Return the fields of a message that are messages themselves, by their numbers."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type}


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number and where it ends. Raise IndexError where it does not end."""
    byte = data[position]
    position += 1
    value, shift = byte & 0x7F, 7
    while byte & 0x80:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, position
