"""A publish group of many tenants costs as much as one of a single tenant, under any plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from hookline_service.store.database import Database
from hookline_service.store.publishing import SQL, PublishRows, PublishStore
from tests.store.rows import rows_in

TENANTS = 200


class _Explained(PublishStore):
    """Explains the statement that `write` would run, with its arguments."""

    def arguments(self, rows: PublishRows) -> list[object]:
        """Return the arguments that `write` makes."""
        return self._arguments(rows)


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a plan."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes_of(child)


@pytest.mark.parametrize("are_settings_of_the_path", [True, False])
async def test_publish_plan_does_not_compare_every_row_with_every_tenant(
    database_url: str, *, are_settings_of_the_path: bool
) -> None:
    """The planner takes arrays for short: a join of two is a nested loop, tenants times rows."""
    database = Database(database_url)
    session = database.session("publish")
    async with rows_in(database_url) as maker:
        uids = [await maker.tenant(f"t{number}") for number in range(TENANTS)]
        rows = PublishRows(epochs=dict.fromkeys(uids, 1))
        for uid in uids:
            event_id = maker.new_id()
            rows.events.append(
                (uid, event_id, None, 0, True, "order.created", "", None, None, None, None, "k",
                 None, None, b"{}", None)
            )  # fmt: skip
            rows.keys.append((uid, "k", event_id, b"", 0))
            place = len(rows.events)
            rows.deliveries += [
                (uid, 7, 0.0, place, maker.new_id(), event_id, event_id, None) for _ in range(10)
            ]
        arguments = _Explained(session, 60.0).arguments(rows)
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {SQL.publish}"
        if are_settings_of_the_path:
            ((text,),) = await session.fetch(explain, *arguments)
        else:
            ((text,),) = await maker.connection.fetch(explain, *arguments)
        (stored,) = await maker.connection.fetch("SELECT count(*) FROM pending_deliveries")
    await session.close()

    nodes = list(nodes_of(json.loads(text)[0]["Plan"]))
    assert stored[0] == 10 * TENANTS
    assert [node["Node Type"] for node in nodes if "Join" in node["Node Type"]] == []
    assert "Nested Loop" not in {node["Node Type"] for node in nodes}
    scans = [node for node in nodes if node["Node Type"] == "Function Scan"]
    assert len(scans) == 4, "keys twice, events and deliveries once each"
    assert {node["Actual Loops"] for node in scans} == {1}


async def test_epoch_check_requires_read_committed(database_url: str) -> None:
    """A snapshot from the begin of the transaction misses a change committed while it waits."""
    async with rows_in(database_url) as maker:
        uid = await maker.tenant("acme")
        statement = "SELECT hookline_check_epochs($1, $2, $3)"
        check = (statement, [uid, maker.new_id()], [1, 1], 100)
        ((passed,),) = await maker.connection.fetch(*check)
        assert passed == [True, False]
        async with maker.connection.transaction(isolation="repeatable_read"):
            with pytest.raises(asyncpg.RaiseError, match="READ COMMITTED, this one is REPEATABLE"):
                await maker.connection.fetch(*check)
