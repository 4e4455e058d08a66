"""The hash chain in Postgres: it has no gap or fork, and every change is detected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest

from hookline_service.domain.audit import BrokenChainError, hash_of
from hookline_service.domain.caller import Caller, Scope, calling
from hookline_service.domain.errors import AlreadyExistsError, NotFoundError
from hookline_service.store.audit import AuditLog, draft
from hookline_service.store.database import ContentionError, Database, RejectedError
from hookline_service.store.tenants import Tenants
from tests.pipeline.rival import rival, until_blocked
from tests.store.audit_log import entries_of, newest, tamper, verified
from tests.store.control_plane import ControlPlane, control_plane

CALLER = Caller(
    principal="apiKeys/4rTq",
    scopes=frozenset({Scope.ADMIN}),
    method="/hookline.v1.TenantService/CreateTenant",
    remote_address="ipv4:192.0.2.1:40000",
    trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
)


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        yield plane


async def test_an_entry_has_principal_method_time_and_remote_address(plane: ControlPlane) -> None:
    with calling(CALLER):
        tenant = await plane.tenants.create("other", "Other", {})
    entry = await newest(plane.database)
    assert (entry.principal, entry.method) == (CALLER.principal, CALLER.method)
    assert (entry.remote_address, entry.trace_id) == (CALLER.remote_address, CALLER.trace_id)
    assert (entry.resource, entry.tenant) == ("tenants/other", "tenants/other")
    assert (entry.tenant_uid, entry.create_time) == (tenant.uid, tenant.create_time)
    assert entry.sequence == 2


async def test_database_and_domain_compute_the_same_hash(plane: ControlPlane) -> None:
    """The database computes the hash in SQL; the domain verifies it in Python."""
    with calling(CALLER):
        await plane.tenants.create("umlaut", "Ümläut \N{SNOWMAN}\n\\u0000", {})
    first, second = await entries_of(plane.database)
    assert first.hash == hash_of(first, bytes(32))
    assert second.hash == hash_of(second, first.hash)
    assert await verified(plane.database) == await AuditLog(plane.database).head()


async def test_drafts_are_removed_at_commit(plane: ControlPlane) -> None:
    assert await plane.value("SELECT count(*) FROM audit_drafts") == 0


async def test_refused_or_rolled_back_change_leaves_neither_entry_nor_gap(
    plane: ControlPlane,
) -> None:
    with pytest.raises(AlreadyExistsError):
        await plane.tenants.create("acme", "", {})
    await create_and_fail(plane.database)
    await plane.tenants.create("other", "", {})
    assert [entry.resource for entry in await entries_of(plane.database)] == [
        "tenants/acme",
        "tenants/other",
    ]
    await verified(plane.database)


async def test_concurrent_changes_on_two_nodes_form_one_chain(
    plane: ControlPlane, database_url: str
) -> None:
    async with AsyncExitStack() as stack:
        nodes = [Database(database_url, pool_size=6) for _ in range(2)]
        for node in nodes:
            stack.push_async_callback(node.close)
            await node.open()
        await asyncio.gather(
            *(Tenants(nodes[n % 2]).create(f"t{n}", "", {}) for n in range(60)),
            *(create_and_fail(nodes[n % 2]) for n in range(20)),
        )
    assert (await verified(plane.database)).sequence == 61
    resources = {entry.resource for entry in await entries_of(plane.database)}
    assert resources == {"tenants/acme", *(f"tenants/t{n}" for n in range(60))}


async def create_and_fail(database: Database) -> None:
    """Insert a draft in a transaction that is rolled back."""
    with suppress(RejectedError):
        async with database.transaction() as connection:
            await connection.execute(
                "INSERT INTO audit_drafts (entry) VALUES ($1)", draft("tenants/ghost")
            )
            await connection.execute("SELECT 1 / 0")


async def test_slow_transaction_does_not_block_others(
    plane: ControlPlane, database_url: str
) -> None:
    """The commit locks the head, not the change: faster transactions are appended first."""
    async with rival(database_url) as slow:
        await slow.execute(
            "INSERT INTO audit_drafts (entry) VALUES (jsonb_build_object('resource', 'slow'))"
        )
        await plane.tenants.create("quick", "", {})
        await slow.execute("COMMIT")
    resources = [entry.resource for entry in await entries_of(plane.database)]
    assert resources == ["tenants/acme", "tenants/quick", "slow"]
    await verified(plane.database)


async def test_a_change_that_cannot_lock_the_head_is_rolled_back(
    plane: ControlPlane, database_url: str
) -> None:
    async with rival(database_url) as blocker:
        await blocker.execute("SELECT FROM audit_head FOR UPDATE")
        creating = asyncio.create_task(plane.tenants.create("late", "", {}))
        await until_blocked(plane.database, "calls")
        with pytest.raises(ContentionError):
            await creating
    with pytest.raises(NotFoundError):
        await plane.tenants.get("late")
    await plane.tenants.create("late", "", {})
    assert (await verified(plane.database)).sequence == 2


async def test_change_that_waits_for_the_head_is_appended_after_its_holder(
    plane: ControlPlane, database_url: str
) -> None:
    async with rival(database_url) as first:
        await first.execute("SET CONSTRAINTS ALL IMMEDIATE")
        await first.execute("INSERT INTO audit_drafts (entry) VALUES ('{}')")
        creating = asyncio.create_task(plane.tenants.create("second", "", {}))
        await until_blocked(plane.database, "calls")
        await first.execute("COMMIT")
        await creating
    assert (await newest(plane.database)).resource == "tenants/second"
    assert (await verified(plane.database)).sequence == 3


# ---------------------------------------------------------------------------------- append-only


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entries SET principal = 'forged'",
        "UPDATE audit_entries SET principal = 'forged' WHERE false",
        "DELETE FROM audit_entries",
        "TRUNCATE audit_entries",
        "DELETE FROM audit_head",
        "TRUNCATE audit_head",
        "INSERT INTO audit_head (is_only, sequence, hash) VALUES (true, 0, decode('00', 'hex'))",
    ],
)
@pytest.mark.parametrize("role", ["origin", "replica"])
async def test_entries_cannot_be_changed_or_deleted(
    plane: ControlPlane, statement: str, role: str
) -> None:
    before = await entries_of(plane.database)
    with pytest.raises(RejectedError, match="is only ever appended to") as caught:
        await run_as(plane.database, role, statement)
    assert caught.value.sqlstate == "HK002"
    assert await entries_of(plane.database) == before


async def run_as(database: Database, role: str, statement: str) -> None:
    async with database.transaction() as connection:
        await connection.execute(f"SET LOCAL session_replication_role = {role}")
        await connection.execute(statement)


TAMPERING = {
    "create_time": "create_time + interval '1 us'",
    "tenant_uid": "NULL",
    "principal": "'forged'",
    "method": "method || ' '",
    "resource": "'tenants/others'",
    "tenant": "''",
    "remote_address": "'ipv4:127.0.0.1:1'",
    "before_json": "'{}'",
    "after_json": "after_json || ' '",
    "trace_id": "'0'",
    "hash": "sha256('')",
    "encoding": "2",
}


@pytest.mark.parametrize("column", TAMPERING)
async def test_tampering_with_any_column_is_detected(plane: ControlPlane, column: str) -> None:
    for name in ("b", "c", "d"):
        await plane.tenants.create(name, "", {})
    columns = await plane.rows(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'audit_entries'"
    )
    assert {row[0] for row in columns} == TAMPERING.keys() | {"sequence"}
    await verified(plane.database)
    await tamper(
        plane.database,
        f"UPDATE audit_entries SET {column} = {TAMPERING[column]} WHERE sequence = 2",  # noqa: S608
    )
    with pytest.raises(BrokenChainError) as caught:
        await verified(plane.database)
    assert caught.value.sequence == 2


@pytest.mark.parametrize("sequence", [1, 2, 4])
async def test_deleted_row_is_detected(plane: ControlPlane, sequence: int) -> None:
    """The first, a middle and the last row."""
    for name in ("b", "c", "d"):
        await plane.tenants.create(name, "", {})
    noted = await AuditLog(plane.database).head()
    await tamper(
        plane.database,
        f"DELETE FROM audit_entries WHERE sequence = {sequence}",  # noqa: S608 - ours
    )
    with pytest.raises(BrokenChainError, match=f"entry {sequence} is missing"):
        await verified(plane.database)
    if sequence == noted.sequence:  # with the head set back as well, only the noted head shows it
        await plane.rows(
            """UPDATE audit_head SET sequence = e.sequence, hash = e.hash
               FROM audit_entries e WHERE e.sequence = 3"""
        )
        assert (await verified(plane.database)).sequence == 3
        with pytest.raises(BrokenChainError, match="entry 4 is missing"):
            await verified(plane.database, noted)


# ---------------------------------------------------------------------------------------- reading


async def pages(log: AuditLog, tenant_id: str, limit: int, max_bytes: int = 1 << 20) -> list[int]:
    """Return the sequences of a whole list, read page by page."""
    found: list[int] = []
    before = (1 << 63) - 1
    while True:
        page = await log.page(tenant_id, before=before, limit=limit, max_bytes=max_bytes)
        found += [entry.sequence for entry in page.entries]
        if not page.has_more:
            return found
        before = found[-1]


async def test_pages_are_newest_first_and_complete(plane: ControlPlane) -> None:
    log = AuditLog(plane.database)
    for n in range(6):
        await plane.tenants.update("acme", display_name=f"Acme {n}")
        await plane.tenants.create(f"t{n}", "", {})
    assert await pages(log, "-", 4) == list(range(13, 0, -1))
    assert await pages(log, "acme", 4) == [12, 10, 8, 6, 4, 2, 1]
    assert await pages(log, "t0", 4) == [3]
    assert await pages(log, "-", 4, max_bytes=1) == list(range(13, 0, -1))


async def test_page_is_limited_in_bytes_but_has_at_least_one_entry(plane: ControlPlane) -> None:
    for n in range(3):
        await plane.tenants.update("acme", display_name=f"{n}" * 100)
    log = AuditLog(plane.database)
    for max_bytes, length in ((1, 1), (1_000, 2), (1 << 20, 4)):
        page = await log.page("acme", limit=10, max_bytes=max_bytes)
        assert (len(page.entries), page.has_more) == (length, length < 4)


async def test_recreated_tenant_does_not_see_earlier_entries(plane: ControlPlane) -> None:
    log = AuditLog(plane.database)
    await plane.tenants.create("again", "", {})
    await plane.tenants.delete("again")
    with pytest.raises(NotFoundError):
        await log.page("again", limit=10, max_bytes=1 << 20)
    await plane.tenants.create("again", "", {})
    (entry,) = (await log.page("again", limit=10, max_bytes=1 << 20)).entries
    assert entry.sequence == 4


async def test_walk_reads_in_batches_and_excludes_later_entries(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hookline_service.store.audit._WALK_BATCH", 2)
    for n in range(4):
        await plane.tenants.create(f"t{n}", "", {})
    log = AuditLog(plane.database)
    walked = []
    async for entry in log.walk((await log.head()).sequence):
        walked.append(entry.sequence)
        await plane.tenants.update("acme", display_name=f"Acme {entry.sequence}")
    assert walked == [1, 2, 3, 4, 5]
    assert (await verified(plane.database)).sequence == 10


async def test_read_is_recorded_for_its_tenant(plane: ControlPlane) -> None:
    log = AuditLog(plane.database)
    with calling(CALLER):
        await log.add_read("tenants/acme/events/evt_1", "acme")
        await log.add_read("tenants/-", "")
    of_tenant, of_all = (await entries_of(plane.database))[1:]
    assert of_tenant.tenant_uid == (await plane.tenants.get("acme")).uid
    assert (of_all.tenant, of_all.tenant_uid) == ("", None)
    assert {of_tenant.before_json, of_tenant.after_json} == {""}


async def test_invalid_text_of_callers_is_sanitized_and_truncated(plane: ControlPlane) -> None:
    odd = Caller(principal="CN=\x00\ud800", scopes=frozenset(), remote_address="x" * 5_000)
    with calling(odd):
        await AuditLog(plane.database).add_read("", "")
    entry = await newest(plane.database)
    assert entry.principal == "CN=\ufffd?"
    assert entry.remote_address == "x" * 1_024 + "…"
    await verified(plane.database)
