"""The SQL of the store: statements are named, and those of the data path use indexes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib import resources

import pytest

from hookline_service.store.database import Database, Session
from hookline_service.store.statements import Statements
from tests.store.hot_rows import HotRows

FILES = sorted(
    file.name.removesuffix(".sql")
    for file in resources.files("hookline_service.store").joinpath("sql").iterdir()
    if file.name.endswith(".sql")
)


@pytest.fixture
async def session(database_url: str) -> AsyncIterator[Session]:
    """A session like those of the data path."""
    opened = Database(database_url).session("test")
    yield opened
    await opened.close()


async def plan_of(session: Session, statement: str, *arguments: str) -> str:
    """Return the generic plan of a statement."""
    async with session.transaction() as connection:
        await connection.execute(f"PREPARE probe AS {statement}")
        rows = await connection.fetch(f"EXPLAIN EXECUTE probe ({', '.join(arguments)})")
        await connection.execute("DEALLOCATE probe")
    return "\n".join(row[0] for row in rows)


def test_a_statement_is_an_attribute_by_its_name() -> None:
    statements = Statements("recording")

    assert statements.names()[0] == "record"
    assert statements.record.startswith("-- The fence")
    with pytest.raises(AttributeError, match=r"sql/recording\.sql has no statement 'recrod'"):
        _ = statements.recrod


@pytest.mark.parametrize("noun", FILES)
def test_every_sql_file_has_uniquely_named_statements(noun: str) -> None:
    text = resources.files("hookline_service.store").joinpath(f"sql/{noun}.sql").read_text("utf-8")
    heads = re.findall(r"^-- name: (\w+)", text, re.MULTILINE)

    assert len(set(heads)) == len(heads) > 0
    assert Statements(noun).names() == tuple(heads)


@pytest.mark.parametrize("noun", FILES)
async def test_server_can_prepare_every_statement(session: Session, noun: str) -> None:
    statements = Statements(noun)

    for name in statements.names():
        async with session.transaction() as connection:
            prepared = await connection.prepare(getattr(statements, name))
            assert prepared.get_query(), name


async def test_refill_excludes_loaded_deliveries_by_a_hash(session: Session) -> None:
    """`<> ALL` took a second for 64 lanes with 500 known deliveries, and grew with the square."""
    plan = await plan_of(
        session, Statements("lanes").refill, "'{}'", "'{}'", "'{}'", "'{}'", "'{}'", "1"
    )

    assert "hashed SubPlan" in plan
    assert "Index Scan using pending_by_lane" in plan
    assert "Seq Scan" not in plan


async def test_sweep_uses_the_lane_index(session: Session) -> None:
    plan = await plan_of(session, Statements("lanes").heads, "'{}'", "'{}'", "8")

    assert plan.count("using pending_by_lane") == 2
    assert "Seq Scan" not in plan


async def test_arrivals_are_read_by_two_index_ranges(session: Session) -> None:
    first = "'00000000-0000-0000-0000-000000000000'"
    plan = await plan_of(session, Statements("lanes").arrivals, "'{}'", first, "now()", "500")

    assert plan.count("using pending_deliveries_pkey") == 1
    assert plan.count("using pending_later") == 1
    assert "Seq Scan" not in plan


async def test_ordering_keys_are_read_by_their_index(session: Session) -> None:
    heads = await plan_of(session, Statements("ordering").heads, *["'{}'"] * 4)
    page = await plan_of(session, Statements("ordering").page, *["'{}'"] * 5, "1", *["'{}'"] * 2)

    assert heads.count("using pending_by_key") == 1
    assert page.count("using pending_by_key") == 2
    assert "hashed SubPlan" in page
    assert "Sort" not in heads + page
    assert "Seq Scan" not in heads + page


async def test_record_finds_its_rows_by_the_primary_key(session: Session) -> None:
    plan = await plan_of(session, Statements("recording").record, "NULL", *["'{}'"] * 27)

    assert plan.count("Index Scan using pending_deliveries_pkey") == 2
    assert "Seq Scan" not in plan


async def test_plans_do_not_depend_on_table_statistics(session: Session) -> None:
    """The table is sometimes empty and sometimes full; the plan must be the same."""
    rows, statement = HotRows(session), Statements("lanes").refill
    arguments = [*["'{}'"] * 5, "1"]
    empty = await plan_of(session, statement, *arguments)
    uid = await rows.subscription()
    for _ in range(200):
        await rows.pending(uid)
    await session.fetch("ANALYZE pending_deliveries")

    full = await plan_of(session, statement, *arguments)

    shape = re.compile(r"\(cost=.*?\)|_\d{8}\w*|\be_\d+\b|\bevents\w*")
    assert shape.sub("", full) == shape.sub("", empty)


def test_every_insert_of_a_pending_delivery_sets_its_key_hash() -> None:
    """An ordered lane never reads a row without a key hash."""
    written = [
        (noun, name, getattr(Statements(noun), name).partition("INSERT INTO pending_deliveries")[2])
        for noun in FILES
        for name in Statements(noun).names()
        if "INSERT INTO pending_deliveries" in getattr(Statements(noun), name)
    ]

    assert {(noun, name) for noun, name, _ in written} >= {
        ("publishing", "publish"),
        ("operations", "retry_finished"),
    }
    for noun, name, rest in written:
        assert "key_hash" in rest.partition(")")[0], f"{noun}.sql: {name}"
