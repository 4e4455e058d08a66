"""Signed heads of the audit log: format, verification, and rotation of the master key."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hookline_service.domain.audit import BrokenChainError, ChainHead
from hookline_service.store.audit_checkpoints import (
    AuditCheckpoints,
    CheckpointKey,
    CheckpointVerifier,
)
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.master_keys import KeyRotation
from hookline_service.store.secrets import SealedSecretError, SecretBox
from tests.store.audit_log import tamper
from tests.store.control_plane import KEY, ControlPlane, control_plane

HEAD = ChainHead(768, b"h" * 32)
MOMENT = datetime(2026, 11, 24, 20, 15, tzinfo=UTC)
SEED = b"s" * 32


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        yield plane


def test_checkpoint_is_a_c2sp_signed_note() -> None:
    """Parses the note as c2sp.org/signed-note specifies, without the code under test."""
    text, signature = CheckpointKey(SEED).sign(HEAD, MOMENT).split("\n\n")
    root = base64.b64encode(b"h" * 32).decode()
    assert text == f"hookline audit log\n768\n{root}\n2026-11-24T20:15:00Z"
    dash, name, encoded = signature.removesuffix("\n").split(" ")
    assert (dash, name) == ("\u2014", "hookline-audit")
    public = Ed25519PrivateKey.from_private_bytes(SEED).public_key()
    raw = base64.b64decode(encoded)
    assert raw[:4] == sha256(b"hookline-audit\n\x01" + public.public_bytes_raw()).digest()[:4]
    public.verify(raw[4:], text.encode() + b"\n")


def test_verifier_accepts_only_unchanged_notes_of_its_key() -> None:
    key, other = CheckpointKey(SEED), CheckpointKey(b"o" * 32)
    verifier = CheckpointVerifier.parse(str(key.verifier))
    note = key.sign(HEAD, MOMENT)
    read = verifier.read(note)
    assert (read.head, read.create_time) == (HEAD, MOMENT)
    forged = [
        other.sign(HEAD, MOMENT),
        note.replace("768", "769"),
        note.replace("2026", "2027"),
        note.replace("\n\n", "\n"),
        note.partition("\n\n")[0],
        "",
    ]
    for text in forged:
        with pytest.raises(ValueError, match=r"."):
            verifier.read(text)


@pytest.mark.parametrize("change", [("+", "-"), ("hookline", "other"), ("audit+", "audit+0")])
def test_invalid_verifier_key_is_refused(change: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        CheckpointVerifier.parse(str(CheckpointKey(SEED).verifier).replace(*change))


async def test_key_and_first_checkpoint_are_created_together(plane: ControlPlane) -> None:
    checkpoints, box = AuditCheckpoints(plane.database), SecretBox([KEY])
    assert await checkpoints.load_key(box) is None
    one = await checkpoints.load_or_create_key(box, MOMENT)
    two = await checkpoints.load_or_create_key(box, MOMENT)
    assert str(one.verifier) == str(two.verifier)
    assert (await checkpoints.latest(one.verifier)).head == ChainHead()
    with pytest.raises(SealedSecretError):
        await checkpoints.load_key(SecretBox([b"x" * 32]))

    await tamper(plane.database, "DELETE FROM audit_checkpoints")
    three = await checkpoints.load_or_create_key(box, MOMENT)
    with pytest.raises(BrokenChainError, match="all checkpoints were removed"):
        await checkpoints.latest(three.verifier)


async def test_earlier_checkpoints_stay_verifiable_after_a_rotation(plane: ControlPlane) -> None:
    checkpoints, new = AuditCheckpoints(plane.database), b"n" * 32
    key = await checkpoints.load_or_create_key(SecretBox([KEY]), MOMENT)
    await checkpoints.add(HEAD, key.sign(HEAD, MOMENT))
    both = TenantSecrets(SecretBox([new, KEY]))
    await KeyRotation(plane.database, both).run(lambda _: None)
    after = await checkpoints.load_key(SecretBox([new]))
    assert after is not None
    assert str(after.verifier) == str(key.verifier)
    assert (await checkpoints.latest(after.verifier)).head == HEAD


async def test_a_checkpoint_under_another_sequence_is_detected(plane: ControlPlane) -> None:
    checkpoints = AuditCheckpoints(plane.database)
    key = await checkpoints.load_or_create_key(SecretBox([KEY]), MOMENT)
    await checkpoints.add(ChainHead(9, HEAD.hash), key.sign(HEAD, MOMENT))
    with pytest.raises(BrokenChainError, match="checkpoint 9 is one of another entry"):
        await checkpoints.latest(key.verifier)
