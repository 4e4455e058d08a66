"""Keys that the client makes: short, in a row, and nobody else's."""

from __future__ import annotations

import pytest

from hookline.keys import KeySource


def test_keys_of_a_source_follow_one_another() -> None:
    source = KeySource()
    keys = [source.next() for _ in range(5_000)]

    assert {len(key) for key in keys} == {22}
    assert len(set(keys)) == 5_000
    assert keys == sorted(keys)
    assert len({key[:16] for key in keys}) == 1


def test_no_two_sources_make_the_same() -> None:
    assert len({KeySource().next() for _ in range(1_000)}) == 1_000


def test_a_source_that_is_used_up_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hookline.keys._NUMBERS", 3)
    source = KeySource()

    assert len({source.next() for _ in range(10)}) == 10
