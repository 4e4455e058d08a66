"""Connections to Postgres: outcomes of statements, and deadlines on a frozen server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import asyncpg
import pytest

from hookline_service.domain.errors import UnavailableError
from hookline_service.store.database import (
    REPEATABLE,
    BadDataError,
    ContentionError,
    Database,
    OutcomeUnknownError,
    RejectedError,
    ServerTroubleError,
    Session,
)
from tests.pipeline.wire import Wire
from tests.waiting import PATIENCE_S

MARK = "SELECT 'mark'"


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    """A proxy to the database that can drop or freeze connections."""
    async with Wire(database_url) as to_server:
        yield to_server


@pytest.fixture
async def session(wire: Wire) -> AsyncIterator[Session]:
    """A session through the proxy with a short timeout."""
    opened = Database(wire.url, timeout_s=0.3).session("test")
    yield opened
    await opened.close()


@pytest.fixture
async def database(wire: Wire) -> AsyncIterator[Database]:
    """A pool of one connection through the proxy with a short timeout."""
    opened = Database(wire.url, pool_size=1, timeout_s=0.3)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def patient_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graceful close of a connection to a frozen server takes longer than any test."""
    monkeypatch.setattr("hookline_service.store.database.CLOSE_TIMEOUT_S", 2 * PATIENCE_S)


async def values(database: Session | Database, statement: str) -> list[object]:
    """Return the first column of a statement's rows."""
    return [row[0] for row in await database.fetch(statement)]


def hold(wire: Wire) -> None:
    """Freeze the server for the client that sends the mark."""
    wire.hold_answer = b"mark"


# -------------------------------------------------------------------------------------- sessions


async def test_session_connects_on_first_use_and_keeps_its_connection(session: Session) -> None:
    (first,) = await session.fetch("SELECT pg_backend_pid()")
    (second,) = await session.fetch("SELECT pg_backend_pid()")

    assert first[0] == second[0]


async def test_a_session_has_a_name_and_an_idle_in_transaction_timeout(
    session: Session,
) -> None:
    (row,) = await session.fetch(
        """SELECT current_setting('application_name') AS name, current_setting('jit') AS jit,
                  current_setting('plan_cache_mode') AS plans,
                  current_setting('synchronous_commit') AS durable,
                  current_setting('idle_in_transaction_session_timeout') AS idle"""
    )

    assert dict(row) == {
        "name": "hookline test",
        "jit": "off",
        "plans": "force_generic_plan",
        "durable": "on",
        "idle": "5s",
    }


async def test_a_statement_that_never_reached_a_server_did_nothing(database_url: str) -> None:
    session = Database(database_url.replace("hookline_test", "no_such")).session("test")

    with pytest.raises(UnavailableError):
        await session.fetch("SELECT 1")
    with pytest.raises(UnavailableError):
        async with session.transaction():
            pass


async def test_a_statement_whose_answer_is_lost_may_have_committed(
    wire: Wire, session: Session
) -> None:
    await session.fetch("CREATE TABLE t (what text)")
    wire.cut_answer = b"mark"

    with pytest.raises(OutcomeUnknownError):
        await session.fetch("INSERT INTO t VALUES ($1)", "mark")

    assert await values(session, "SELECT what FROM t") == ["mark"]


@pytest.mark.usefixtures("patient_close")
async def test_statement_on_a_frozen_server_ends_at_the_deadline_and_the_session_recovers(
    wire: Wire, session: Session
) -> None:
    (before,) = await session.fetch("SELECT pg_backend_pid()")
    hold(wire)

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(OutcomeUnknownError):
            await session.fetch(MARK)
        (after,) = await session.fetch("SELECT pg_backend_pid()")

    assert after[0] != before[0]


@pytest.mark.usefixtures("patient_close")
async def test_transaction_on_a_frozen_server_ends_at_the_deadline(
    wire: Wire, session: Session
) -> None:
    """A rollback would wait for the frozen server without end."""
    await session.fetch("CREATE TABLE t (n integer)")

    async def insert_and_wait() -> None:
        async with session.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
            hold(wire)
            await connection.fetch(MARK)

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(OutcomeUnknownError):
            await insert_and_wait()

        assert await values(session, "SELECT n FROM t") == []


async def test_a_transaction_commits_on_leaving_and_rolls_back_on_an_error(
    session: Session,
) -> None:
    await session.fetch("CREATE TABLE t (n integer)")

    async def insert(number: int, *, fails: bool) -> None:
        async with session.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES ($1)", number)
            if fails:
                raise LookupError

    await insert(1, fails=False)
    with pytest.raises(LookupError):
        await insert(2, fails=True)

    assert await values(session, "SELECT n FROM t") == [1]


async def test_a_lost_commit_is_an_unknown_outcome(wire: Wire, session: Session) -> None:
    await session.fetch("CREATE TABLE t (n integer)")
    wire.cut_answer = b"COMMIT;"

    with pytest.raises(OutcomeUnknownError):
        async with session.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (1)")

    assert await values(session, "SELECT n FROM t") == [1]


async def test_a_killed_backend_is_replaced(session: Session, database_url: str) -> None:
    (row,) = await session.fetch("SELECT pg_backend_pid() AS pid")
    other = await asyncpg.connect(database_url)
    await other.execute("SELECT pg_terminate_backend($1, 5000)", row["pid"])
    await other.close()

    with suppress(OutcomeUnknownError):  # it may have been on its way when the connection ended
        await session.fetch("SELECT 1")
    assert await values(session, "SELECT 1") == [1]


@pytest.mark.parametrize(
    "statement,arguments,sqlstate",
    [
        ("SELECT 1 / 0", (), "22012"),
        ("SELECT $1::integer", ("no number",), "22000"),
        ("SELECT $1::smallint", (70_000,), "22000"),
        ("SELECT $1::text", ("a\0b",), "22021"),
        ("INSERT INTO tenants (tenant_uid, tenant_id) VALUES (NULL, 'x')", (), "23502"),
        ("SELECT * FROM nowhere", (), "42P01"),
    ],
)
async def test_a_rejected_statement_raises_its_sqlstate(
    session: Session, statement: str, arguments: tuple[object, ...], sqlstate: str
) -> None:
    (before,) = await session.fetch("SELECT pg_backend_pid()")

    with pytest.raises(RejectedError) as refusal:
        await session.fetch(statement, *arguments)

    assert refusal.value.sqlstate == sqlstate
    assert await session.fetch("SELECT pg_backend_pid()") == [before]


@pytest.mark.parametrize(
    "sqlstate, kind",
    [
        ("22001", BadDataError), ("25006", ServerTroubleError), ("53100", ServerTroubleError),
        ("57014", ServerTroubleError), ("58030", ServerTroubleError), ("23505", RejectedError),
        ("42P01", RejectedError),
    ],
)  # fmt: skip
async def test_sqlstate_class_decides_whether_the_data_or_the_server_is_at_fault(
    session: Session, sqlstate: str, kind: type[RejectedError]
) -> None:
    raising = f"DO $$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END$$"

    with pytest.raises(RejectedError) as refusal:
        await session.fetch(raising)

    assert type(refusal.value) is kind
    assert isinstance(refusal.value, REPEATABLE) is (kind is ServerTroubleError)


async def test_a_deadlock_is_contention(database_url: str) -> None:
    database = Database(database_url)
    one, two = database.session("one"), database.session("two")
    await one.fetch("CREATE TABLE t AS SELECT generate_series(1, 2) AS n")
    first_step = [asyncio.Event(), asyncio.Event()]

    async def cross(session: Session, mine: int, theirs: int) -> None:
        async with session.transaction() as connection:
            await connection.execute("SELECT FROM t WHERE n = $1 FOR UPDATE", mine)
            first_step[mine - 1].set()
            await first_step[theirs - 1].wait()
            await connection.execute("SELECT FROM t WHERE n = $1 FOR UPDATE", theirs)

    ends = await asyncio.gather(cross(one, 1, 2), cross(two, 2, 1), return_exceptions=True)

    assert [type(end) for end in ends if end is not None] == [ContentionError]
    await one.close()
    await two.close()


async def test_close_does_not_wait_for_a_frozen_server(wire: Wire) -> None:
    session = Database(wire.url, timeout_s=60).session("test")
    await session.fetch("SELECT 1")
    hold(wire)
    stuck = asyncio.create_task(session.fetch(MARK))
    await wire.is_held.wait()

    async with asyncio.timeout(PATIENCE_S):
        await session.close()
        await asyncio.gather(stuck, return_exceptions=True)
    assert stuck.exception() is not None


async def test_a_session_idle_in_a_transaction_is_ended(session: Session) -> None:
    """A process frozen inside a transaction must not keep its locks longer than its lease."""

    async def idle() -> None:
        async with session.transaction() as connection:
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '20ms'")
            ended = asyncio.Event()
            connection.add_termination_listener(lambda _: ended.set())
            await ended.wait()

    with pytest.raises(OutcomeUnknownError):
        await idle()
    assert await values(session, "SELECT 1") == [1]


# ------------------------------------------------------------------------------------- the pool


@pytest.mark.usefixtures("patient_close")
async def test_a_pooled_connection_that_overran_is_terminated_and_the_pool_recovers(
    wire: Wire, database: Database
) -> None:
    hold(wire)

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(OutcomeUnknownError):
            await database.fetch(MARK)
        assert await values(database, "SELECT 1") == [1]


@pytest.mark.usefixtures("patient_close")
async def test_a_pooled_transaction_that_overran_is_terminated(
    wire: Wire, database: Database
) -> None:
    async def wait() -> None:
        async with database.transaction() as connection:
            hold(wire)
            await connection.fetch(MARK)

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(OutcomeUnknownError):
            await wait()
        assert await values(database, "SELECT 1") == [1]


async def test_a_refused_statement_keeps_the_pooled_connection(database: Database) -> None:
    (before,) = await database.fetch("SELECT pg_backend_pid()")
    with pytest.raises(RejectedError):
        await database.fetch("SELECT 1 / 0")
    with pytest.raises(RejectedError):
        async with database.transaction() as connection:
            await connection.fetch("SELECT 1 / 0")

    assert await database.fetch("SELECT pg_backend_pid()") == [before]


@pytest.mark.usefixtures("patient_close")
async def test_cancelled_caller_does_not_damage_the_pool(wire: Wire, database: Database) -> None:
    hold(wire)
    call = asyncio.create_task(database.fetch(MARK))
    await wire.is_held.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    async with asyncio.timeout(PATIENCE_S):
        assert await values(database, "SELECT 1") == [1]


async def test_pool_reconnects_only_on_demand(
    wire: Wire, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    wire.close()
    for _ in range(3):
        with pytest.raises((UnavailableError, OutcomeUnknownError)):
            await database.fetch("SELECT 1")
    wire.is_open = True

    assert await values(database, "SELECT 1") == [1]
    assert caplog.text == ""


async def test_a_pool_without_a_server_is_unavailable(database_url: str) -> None:
    database = Database(database_url.replace("hookline_test", "no_such"))

    with pytest.raises(UnavailableError):
        await database.open()
    with pytest.raises(UnavailableError):
        await database.fetch("SELECT 1")
    await database.close()


async def test_json_is_converted_to_and_from_objects(database: Database) -> None:
    value = {"a": [1, None, "ü"], "b": {}}

    row = await database.fetchrow("SELECT $1::jsonb AS value", value)

    assert row is not None
    assert row["value"] == value
