"""Idempotency keys of the client: short, sequential and unique."""

from __future__ import annotations

import pytest

from hookline.keys import KeySource


def test_keys_of_a_source_are_sequential() -> None:
    source = KeySource()
    keys = [source.next() for _ in range(5_000)]

    assert {len(key) for key in keys} == {22}
    assert len(set(keys)) == 5_000
    assert keys == sorted(keys)
    assert len({key[:16] for key in keys}) == 1


def test_two_sources_generate_different_keys() -> None:
    assert len({KeySource().next() for _ in range(1_000)}) == 1_000


def test_an_exhausted_source_starts_a_new_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hookline.keys._NUMBERS", 3)
    source = KeySource()

    assert len({source.next() for _ in range(10)}) == 10
