"""Ed25519 verification with integers only: it shares no code with the signer's library.

Source: RFC 8032 section 5.1 (the group), 5.1.3 (decoding), 5.1.7 (verification). Slow, and not in
constant time: it handles only public values.
"""

from __future__ import annotations

import base64
import hashlib

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)

Point = tuple[int, int]


def _add(a: Point, b: Point) -> Point:
    x1, y1 = a
    x2, y2 = b
    shared = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + shared, P - 2, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - shared, P - 2, P) % P
    return x, y


def _multiply(factor: int, point: Point) -> Point:
    total: Point = (0, 1)
    while factor:
        if factor & 1:
            total = _add(total, point)
        point = _add(point, point)
        factor >>= 1
    return total


def _x_of(y: int, sign: int) -> int:
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_1 % P
    if (x * x - square) % P:
        raise ValueError("no point of the curve")
    return P - x if x & 1 != sign else x


BASE: Point = (_x_of(4 * pow(5, P - 2, P) % P, 0), 4 * pow(5, P - 2, P) % P)


def _decode(encoded: bytes) -> Point:
    number = int.from_bytes(encoded, "little")
    y = number & ((1 << 255) - 1)
    return _x_of(y, number >> 255), y


def verifies(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether the signature of the message is valid for the 32-byte public key."""
    point, scalar = _decode(signature[:32]), int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or scalar >= ORDER:
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    challenge = int.from_bytes(digest, "little") % ORDER
    return _multiply(scalar, BASE) == _add(point, _multiply(challenge, _decode(public_key)))


def signed_v1a(whpk: str, webhook_id: str, timestamp: str, body: bytes, header: str) -> bool:
    """Return whether a `v1a` signature of the header is valid for a `whpk_…` public key."""
    public_key = base64.b64decode(whpk.removeprefix("whpk_"), validate=True)
    content = f"{webhook_id}.{timestamp}.".encode() + body
    return any(
        verifies(public_key, content, base64.b64decode(token.removeprefix("v1a,")))
        for token in header.split()
        if token.startswith("v1a,")
    )
