"""Which name is looked up next: turns by tenant, and no tenant with all places."""

from __future__ import annotations

from hookline_service.targets.http.lookup_turns import LookupTurns


def turns_of(running_max: int, waiting_max: int = 1_000) -> LookupTurns:
    turns = LookupTurns(running_max, waiting_max)
    for number in range(100):
        assert turns.join("busy", f"b{number}")
    for number in range(3):
        assert turns.join("calm", f"c{number}")
    return turns


def test_tenants_take_turns() -> None:
    turns, order = turns_of(1), ""
    for _ in range(7):
        found = turns.next()
        assert found is not None
        assert turns.next() is None, "one runs at a time"
        order += found[1][0]
        turns.ended(found[0])
    assert order == "bcbcbcb"


def test_no_tenant_has_all_places() -> None:
    turns = LookupTurns(16, 1_000)
    for number in range(100):
        turns.join("busy", f"b{number}")
    running = 0
    while turns.next() is not None:
        running += 1
    assert running == 13, "four times what is free"
    assert turns.join("calm", "c")
    assert turns.next() == ("calm", "c")
    turns.ended("busy")
    turns.ended("calm")
    assert turns.next() == ("busy", "b13")


def test_nor_all_the_waiting() -> None:
    turns, joined = LookupTurns(1, 10), 0
    while turns.join("busy", f"b{joined}"):
        joined += 1
    assert joined == 8
    assert turns.join("busy", "b0"), "it waits already"
    assert turns.join("calm", "c")


def test_a_name_waits_with_each_tenant_that_asks_for_it() -> None:
    turns = LookupTurns(1, 10)
    for tenant_id in ("busy", "calm"):
        assert turns.join(tenant_id, "shared")
    assert turns.next() == ("busy", "shared")
    turns.ended("busy")
    assert turns.next() == ("calm", "shared")
