"""The audit log: what an entry holds, the hash that chains it, and the walk that finds a break.

Owns the canonical encoding, of which the schema's `audit_append` is the writer and this the reader;
others may be written. Independent of where entries are stored and of what they show.

Encoding 1. The hash of an entry is SHA-256 over the 32 bytes of the hash before it (of the first:
32 zero bytes), and then, each as four bytes that count what follows, the greatest first, and that
many bytes of UTF-8:

  1. the number of the encoding, `1`
  2. the sequence, in decimal digits
  3. the create time, in microseconds since 1970-01-01T00:00:00Z, in decimal digits
  4. the principal
  5. the method
  6. the resource
  7. the tenant, `tenants/ID` or empty
  8. the tenant's uid, 36 characters in lower case, or empty
  9. the remote address
 10. the JSON of before, as it stands
 11. the JSON of after, as it stands
 12. the trace id
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

ENCODING = 1
GENESIS = bytes(32)
"""What stands for the hash before the first entry."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One change or privileged read."""

    sequence: int
    """From 1, without a gap."""
    create_time: datetime
    principal: str
    method: str
    """The RPC's full name; where no RPC was the cause, what the service or its operator did."""
    resource: str
    tenant: str = ""
    """`tenants/ID`; empty: of none, or across them."""
    tenant_uid: UUID | None = None
    remote_address: str = ""
    before_json: str = ""
    after_json: str = ""
    trace_id: str = ""
    encoding: int = ENCODING
    hash: bytes = b""


@dataclass(frozen=True, slots=True)
class ChainHead:
    """What a chain has come to."""

    sequence: int = 0
    hash: bytes = GENESIS

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash.hex()}"


def hash_of(entry: AuditEntry, before: bytes) -> bytes:
    """The hash that an entry must have behind the hash `before`. Raises `ValueError`: unknown."""
    if entry.encoding != ENCODING:
        raise ValueError(f"encoding {entry.encoding} is not known to this version")
    hashed = hashlib.sha256(before)
    for part in (
        str(entry.encoding),
        str(entry.sequence),
        str((entry.create_time - _EPOCH) // _MICROSECOND),
        entry.principal,
        entry.method,
        entry.resource,
        entry.tenant,
        str(entry.tenant_uid or ""),
        entry.remote_address,
        entry.before_json,
        entry.after_json,
        entry.trace_id,
    ):
        encoded = part.encode()
        hashed.update(len(encoded).to_bytes(4, "big"))
        hashed.update(encoded)
    return hashed.digest()


class BrokenChainError(Exception):
    """The log is not what was appended; `sequence` is the first entry that says so."""

    def __init__(self, sequence: int, message: str) -> None:
        super().__init__(message)
        self.sequence = sequence


class ChainWalk:
    """Entries from the first on, one after another; each must follow from the one before.

    `noted`: a head that was stored elsewhere; the chain must pass through it. An owner of the
    tables can rewrite every hash in the log, but not what is stored elsewhere. `sealed`: hashes
    that were signed, by their sequences; the chain must have them too. `start`: the head that the
    first entry follows, by default that of the empty chain.
    """

    def __init__(
        self,
        noted: ChainHead | None = None,
        *,
        sealed: Mapping[int, bytes] | None = None,
        start: ChainHead | None = None,
    ) -> None:
        self.head = start or ChainHead()
        self._noted = noted
        self._sealed = sealed or {}

    def follow(self, entry: AuditEntry) -> None:
        """Take the next entry. Raises `BrokenChainError`."""
        expected = self.head.sequence + 1
        if entry.sequence != expected:
            raise BrokenChainError(
                expected, f"entry {expected} is missing; {entry.sequence} comes instead"
            )
        try:
            fits = hash_of(entry, self.head.hash) == entry.hash
        except (ValueError, UnicodeError) as error:
            message = f"entry {expected} cannot be checked: {error}"
            raise BrokenChainError(expected, message) from None
        if not fits:
            raise BrokenChainError(
                expected,
                f"entry {expected} does not fit its hash: it, or the hash before it, was changed",
            )
        self.head = ChainHead(entry.sequence, entry.hash)
        if self._noted and self._noted.sequence == expected and self._noted.hash != entry.hash:
            raise BrokenChainError(
                expected, f"entry {expected} has another hash than the one that was noted"
            )
        if self._sealed.get(expected, entry.hash) != entry.hash:
            raise BrokenChainError(
                expected, f"entry {expected} has another hash than the one that was signed"
            )

    def end(self, kept: ChainHead) -> None:
        """End where `kept`, the head that the log keeps, says. Raises `BrokenChainError`."""
        noted = self._noted.sequence if self._noted else 0
        furthest = max(kept.sequence, noted, *self._sealed, 0)
        missing = self.head.sequence + 1
        if furthest >= missing:
            raise BrokenChainError(
                missing,
                f"entry {missing} is missing, and all that came after it: there were {furthest}",
            )
        if kept != self.head:
            raise BrokenChainError(
                self.head.sequence, f"the log's head says {kept}, its entries end with {self.head}"
            )
