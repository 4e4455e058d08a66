"""The hash chain of the audit log: the fields that a hash covers, and the changes it detects."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from hookline_service.domain.audit import (
    GENESIS,
    AuditEntry,
    BrokenChainError,
    ChainHead,
    ChainWalk,
    hash_of,
)

ENTRY = AuditEntry(
    sequence=1,
    create_time=datetime(2026, 11, 24, 8, 0, 0, 123456, UTC),
    principal="apiKeys/4rTq",
    method="/hookline.v1.TenantService/UpdateTenant",
    resource="tenants/acme",
    tenant="tenants/acme",
    tenant_uid=UUID("01a20bb2-81ba-7a56-bf3b-c8f5be1fa09c"),
    remote_address="ipv4:192.0.2.1:40000",
    before_json='{"display_name":""}',
    after_json='{"display_name":"Åcme"}',
    trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
)
OTHER: dict[str, Any] = {
    "sequence": 2,
    "create_time": ENTRY.create_time + timedelta(microseconds=1),
    "principal": "apiKeys/4rTR",
    "method": "/hookline.v1.TenantService/DeleteTenant",
    "resource": "tenants/acmf",
    "tenant": "",
    "tenant_uid": None,
    "remote_address": "",
    "before_json": "",
    "after_json": '{"display_name":"Acme"}',
    "trace_id": "",
}
"""Another value of each field that the hash covers."""


def chain(length: int) -> list[AuditEntry]:
    entries: list[AuditEntry] = []
    before = GENESIS
    for sequence in range(1, length + 1):
        entry = replace(ENTRY, sequence=sequence)
        before = hash_of(entry, before)
        entries.append(replace(entry, hash=before))
    return entries


def walk(entries: list[AuditEntry], noted: ChainHead | None = None) -> ChainHead:
    walking = ChainWalk(noted)
    for entry in entries:
        walking.follow(entry)
    return walking.head


def head_of(entry: AuditEntry) -> ChainHead:
    return ChainHead(entry.sequence, entry.hash)


def test_hash_is_computed_as_documented() -> None:
    """Computes the hash from the documented encoding, without the code under test."""
    parts = [
        "1",
        "1",
        "1795507200123456",
        "apiKeys/4rTq",
        "/hookline.v1.TenantService/UpdateTenant",
        "tenants/acme",
        "tenants/acme",
        "01a20bb2-81ba-7a56-bf3b-c8f5be1fa09c",
        "ipv4:192.0.2.1:40000",
        '{"display_name":""}',
        '{"display_name":"Åcme"}',
        "4bf92f3577b34da6a3ce929d0e0e4736",
    ]
    data = bytes(32)
    for part in parts:
        data += len(part.encode()).to_bytes(4, "big") + part.encode()
    assert hash_of(ENTRY, GENESIS) == hashlib.sha256(data).digest()


def test_hash_covers_every_other_field() -> None:
    assert OTHER.keys() | {"hash", "encoding"} == {field.name for field in fields(AuditEntry)}
    hashes = {hash_of(replace(ENTRY, **{name: value}), GENESIS) for name, value in OTHER.items()}
    assert len(hashes | {hash_of(ENTRY, GENESIS), hash_of(ENTRY, b"\1" * 32)}) == len(OTHER) + 2


def test_moving_text_between_fields_changes_the_hash() -> None:
    moved = replace(ENTRY, principal="apiKeys/4rTq/", method=ENTRY.method[1:])
    assert hash_of(moved, GENESIS) != hash_of(ENTRY, GENESIS)


def test_unknown_encoding_version_is_rejected() -> None:
    with pytest.raises(BrokenChainError, match="encoding 2 is not known"):
        walk([replace(chain(1)[0], encoding=2)])


def test_unchanged_chain_verifies() -> None:
    entries = chain(5)
    walking = ChainWalk(noted=head_of(entries[2]))
    for entry in entries:
        walking.follow(entry)
    walking.end(head_of(entries[-1]))
    assert walking.head == head_of(entries[-1])
    ChainWalk().end(ChainHead())


@pytest.mark.parametrize("name", sorted(OTHER.keys() - {"sequence"}))
def test_changed_field_is_reported_at_its_entry(name: str) -> None:
    entries = chain(4)
    entries[1] = replace(entries[1], **{name: OTHER[name]})
    with pytest.raises(BrokenChainError, match="entry 2 does not fit its hash") as caught:
        walk(entries)
    assert caught.value.sequence == 2


def test_changed_entry_with_recomputed_hash_is_reported_at_the_next_entry() -> None:
    entries = chain(4)
    forged = replace(entries[1], principal="forged")
    entries[1] = replace(forged, hash=hash_of(forged, entries[0].hash))
    with pytest.raises(BrokenChainError, match="entry 3 does not fit its hash") as caught:
        walk(entries)
    assert caught.value.sequence == 3


@pytest.mark.parametrize("sequence", [1, 2])
def test_missing_entry_is_reported_by_sequence(sequence: int) -> None:
    entries = chain(4)
    del entries[sequence - 1]
    with pytest.raises(BrokenChainError, match=f"entry {sequence} is missing") as caught:
        walk(entries)
    assert caught.value.sequence == sequence


def test_duplicate_entry_is_rejected() -> None:
    first, second = chain(2)
    with pytest.raises(BrokenChainError, match="entry 2 is missing; 1 comes instead"):
        walk([first, first, second])


def test_truncated_log_is_detected_by_the_stored_head() -> None:
    entries = chain(4)
    walking = ChainWalk()
    for entry in entries[:2]:
        walking.follow(entry)
    with pytest.raises(BrokenChainError, match=r"entry 3 is missing, and all .* there were 4"):
        walking.end(head_of(entries[-1]))


def test_a_truncated_log_is_detected_by_a_noted_head() -> None:
    entries = chain(4)
    walking = ChainWalk(noted=head_of(entries[3]))
    for entry in entries[:2]:
        walking.follow(entry)
    with pytest.raises(BrokenChainError, match="entry 3 is missing") as caught:
        walking.end(head_of(entries[1]))
    assert caught.value.sequence == 3


def test_a_rewritten_log_is_detected_by_a_noted_head() -> None:
    noted = head_of(chain(4)[2])
    anew, before = [], GENESIS
    for entry in chain(4):
        forged = replace(entry, principal="forged")
        before = hash_of(forged, before)
        anew.append(replace(forged, hash=before))
    assert walk(anew) == head_of(anew[-1])
    with pytest.raises(BrokenChainError, match="another hash than the one that was noted"):
        walk(anew, noted)


def test_a_head_with_another_hash_is_detected() -> None:
    walking = ChainWalk()
    (entry,) = chain(1)
    walking.follow(entry)
    with pytest.raises(BrokenChainError, match="the log's head says 1:0101"):
        walking.end(ChainHead(1, b"\1" * 32))
