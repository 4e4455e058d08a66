"""Checkpoints of the audit log: heads of its chain, signed by a key that the database holds sealed.

A checkpoint is a signed note (C2SP, signed-note v1, ed25519), so that other tools verify it:

    hookline audit log
    768
    4v2V…=                      the hash of entry 768, in base64
    2026-11-24T20:15:00Z        when it was signed

    — hookline-audit Xk3r…=     the first 4 bytes of the key's hash, and the signature

The first three lines are those of a tlog-checkpoint; the hash is that of a chain, not of a tree.
The key is a deployment key: sealed with the master key, and sealed anew when that is rotated, so
that what it signed stays verifiable. An owner of the tables without the master key can remove
checkpoints, and cannot create one.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from hookline_service.domain.audit import GENESIS, BrokenChainError, ChainHead
from hookline_service.store.audit import SQL as AUDIT
from hookline_service.store.database import Database
from hookline_service.store.deployment_keys import SQL as DEPLOYMENT_KEYS
from hookline_service.store.deployment_keys import DeploymentKeyPlace
from hookline_service.store.secrets import KEY_BYTES, SecretBox
from hookline_service.store.statements import Statements

SQL = Statements("audit_checkpoints")

ORIGIN: Final = "hookline audit log"
PRUNED_ORIGIN: Final = "hookline audit log pruned"
"""Another first line, so that no checkpoint can be passed off as a statement of a deletion."""
SIGNER: Final = "hookline-audit"
PURPOSE: Final = "audit checkpoints"
_ED25519: Final = b"\x01"
_ID_BYTES: Final = 4
_WALK_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A head that was signed."""

    head: ChainHead
    create_time: datetime


class CheckpointVerifier:
    """Reads notes that one key has signed."""

    def __init__(self, public_key: Ed25519PublicKey) -> None:
        self._public_key = public_key
        self._encoded = _ED25519 + public_key.public_bytes_raw()
        self.key_id = sha256(SIGNER.encode() + b"\n" + self._encoded).digest()[:_ID_BYTES]

    @classmethod
    def parse(cls, text: str) -> CheckpointVerifier:
        """Read a verifier key, `hookline-audit+ID+KEY`. Raises `ValueError`."""
        name, key_id, encoded = text.strip().split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
        verifier = cls(Ed25519PublicKey.from_public_bytes(raw[len(_ED25519) :]))
        if (name, key_id, raw[:1]) != (SIGNER, verifier.key_id.hex(), _ED25519):
            raise ValueError("it is another kind of key, or its id is not its own")
        return verifier

    def __str__(self) -> str:
        return f"{SIGNER}+{self.key_id.hex()}+{base64.b64encode(self._encoded).decode()}"

    def read(self, note: str, origin: str = ORIGIN) -> Checkpoint:
        """Verify a note of this origin. Raises `ValueError`."""
        text, separator, signature_line = note.rpartition("\n\n— ")
        signer, _, encoded = signature_line.rstrip("\n").partition(" ")
        raw = base64.b64decode(encoded, validate=True)
        if not separator or signer != SIGNER or raw[:_ID_BYTES] != self.key_id:
            raise ValueError("another key has signed it, or none")
        try:
            self._public_key.verify(raw[_ID_BYTES:], (text + "\n").encode())
        except InvalidSignature:
            raise ValueError("its signature is not that of its text") from None
        return _parse(text, origin)

    def read_pruned(self, note: str | None) -> ChainHead:
        """Return the head behind which the log begins; no note: that of the empty chain.

        Raises `BrokenChainError`: the statement is forged.
        """
        if note is None:
            return ChainHead()
        try:
            return self.read(note, PRUNED_ORIGIN).head
        except ValueError as error:
            message = f"the statement of what was pruned is forged: {error}"
            raise BrokenChainError(0, message) from None


class CheckpointKey:
    """Signs heads."""

    def __init__(self, seed: bytes) -> None:
        self._private_key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier = CheckpointVerifier(self._private_key.public_key())

    def sign(self, head: ChainHead, moment: datetime, origin: str = ORIGIN) -> str:
        """Return the note of a head."""
        root = base64.b64encode(head.hash).decode()
        signed_at = moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        text = f"{origin}\n{head.sequence}\n{root}\n{signed_at}\n"
        signature = self.verifier.key_id + self._private_key.sign(text.encode())
        return f"{text}\n— {SIGNER} {base64.b64encode(signature).decode()}\n"


class AuditCheckpoints:
    """The checkpoints that are stored."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load_or_create_key(self, box: SecretBox, moment: datetime) -> CheckpointKey:
        """Return the key that signs, made with the checkpoint of the empty chain if there is none.

        Raises `SealedSecretError` where the box lacks the master key that sealed it.
        """
        key = await self.load_key(box)
        if key is None:
            seed = secrets.token_bytes(KEY_BYTES)
            note = CheckpointKey(seed).sign(ChainHead(0, GENESIS), moment)
            sealed = box.seal(seed, DeploymentKeyPlace(PURPOSE))
            await self._database.fetch(SQL.begin, PURPOSE, sealed, note)
            key = await self.load_key(box)
        if key is None:
            raise BrokenChainError(0, "the key that signs checkpoints was removed")
        return key

    async def load_key(self, box: SecretBox) -> CheckpointKey | None:
        """Return the key that signs; None: there is none. Raises `SealedSecretError`."""
        row = await self._database.fetchrow(DEPLOYMENT_KEYS.read, PURPOSE)
        if row is None:
            return None
        return CheckpointKey(box.open(row["sealed"], DeploymentKeyPlace(PURPOSE)))

    async def latest(self, verifier: CheckpointVerifier) -> Checkpoint:
        """Return the newest. Raises `BrokenChainError`: there is none, or it is forged."""
        row = await self._database.fetchrow(SQL.latest)
        if row is None:
            raise BrokenChainError(0, "all checkpoints were removed")
        return _read(row["sequence"], row["note"], verifier)

    async def add(self, head: ChainHead, note: str) -> None:
        """Store the note of a head."""
        await self._database.fetch(SQL.add, head.sequence, note)

    async def prune(self, head: ChainHead, note: str) -> bool:
        """Delete entries up to a head and the checkpoints before it, with the signed statement.

        One transaction. Returns False where the log begins behind that entry already.
        """
        async with self._database.transaction() as connection:
            if not await connection.fetch(AUDIT.state_pruned, head.sequence, note):
                return False
            await connection.fetch(AUDIT.delete_entries, head.sequence)
            await connection.fetch(AUDIT.delete_checkpoints, head.sequence)
        return True

    async def walk(
        self, verifier: CheckpointVerifier, start: int = -(1 << 63)
    ) -> AsyncIterator[Checkpoint]:
        """Every checkpoint from the sequence `start` on, oldest first.

        Raises `BrokenChainError`: one is forged.
        """
        while rows := await self._database.fetch(SQL.walk, start, _WALK_BATCH):
            for row in rows:
                yield _read(row["sequence"], row["note"], verifier)
            start = rows[-1]["sequence"] + 1

    async def newest_note(self) -> str | None:
        """Return the newest note as it stands; None: there is none."""
        row = await self._database.fetchrow(SQL.latest)
        return None if row is None else row["note"]


def read_unverified(note: str | None) -> ChainHead:
    """Return the head behind which the log begins, by a statement whose signature is not checked.

    Raises `BrokenChainError`: it is no statement.
    """
    if note is None:
        return ChainHead()
    try:
        return _parse(note.partition("\n\n")[0], PRUNED_ORIGIN).head
    except ValueError as error:
        message = f"the statement of what was pruned is forged: {error}"
        raise BrokenChainError(0, message) from None


def _parse(text: str, origin: str) -> Checkpoint:
    first, sequence, root, moment = text.split("\n")
    if first != origin:
        raise ValueError("it is of another log, or of another kind")
    head = ChainHead(int(sequence), base64.b64decode(root, validate=True))
    return Checkpoint(head, datetime.fromisoformat(moment))


def _read(sequence: int, note: str, verifier: CheckpointVerifier) -> Checkpoint:
    try:
        checkpoint = verifier.read(note)
    except ValueError as error:
        raise BrokenChainError(sequence, f"checkpoint {sequence} is forged: {error}") from None
    if checkpoint.head.sequence != sequence:
        raise BrokenChainError(sequence, f"checkpoint {sequence} is one of another entry")
    return checkpoint
