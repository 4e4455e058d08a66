"""Fencing of records: only the version read, by a node with a lease, once. Rule 20."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from hookline_service.domain.caller import Caller, calling
from hookline_service.store.database import Database, RejectedError
from hookline_service.store.recording import Consequences, Disabling, OutcomeRows, RecordStore, Row
from tests.pipeline.rival import rival, until_blocked
from tests.store.audit_log import entries_of, shown, verified
from tests.store.hot_rows import URL, HotRows, finished_row, rescheduled_row


class Recording:
    """A recording store and its rows."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.rows = HotRows(self.database.session("rows"))
        self.store = RecordStore(self.database.session("record"))

    async def record(
        self,
        node_id: UUID,
        finished: Sequence[Row] = (),
        rescheduled: Sequence[Row] = (),
        effect: Consequences | None = None,
    ) -> set[UUID]:
        """Return the deliveries that matched."""
        batch = OutcomeRows(list(finished), list(rescheduled))
        consequences = None if effect is None else lambda _matched: effect
        return set((await self.store.record(node_id, batch, consequences)).matched)


@pytest.fixture
async def recording(database_url: str) -> AsyncIterator[Recording]:
    """Ready to record; what it has read is closed after."""
    ready = Recording(database_url)
    await ready.database.open()
    yield ready
    await ready.store.close()
    await ready.rows.session.close()
    await ready.database.close()


async def test_success_moves_the_row_into_history(recording: Recording) -> None:
    rows = recording.rows
    uid = await rows.subscription()
    delivery_id, node_id = await rows.pending(uid), await rows.node()

    matched = await recording.record(node_id, [finished_row(rows, delivery_id)])

    assert matched == {delivery_id}
    assert await rows.all("pending_deliveries") == []
    assert await rows.all("attempts") == []
    (row,) = await rows.all("deliveries")
    assert (row["state"], row["version"], row["attempt_count"]) == ("SUCCEEDED", 1, 1)
    assert (row["url"], row["http_status"], row["remote_address"]) == (URL, 200, "192.0.2.1")
    assert row["subscription_uid"] == uid


async def test_failure_postpones_the_row_and_writes_its_attempt(
    recording: Recording,
) -> None:
    rows = recording.rows
    delivery_id, node_id = await rows.pending(await rows.subscription()), await rows.node()

    assert await recording.record(node_id, [], [rescheduled_row(delivery_id)]) == {delivery_id}
    again = rescheduled_row(delivery_id, 1, http_status=None, outcome="TIMEOUT")
    assert await recording.record(node_id, [], [again]) == {delivery_id}

    (row,) = await rows.all("pending_deliveries")
    assert (row["version"], row["attempt_count"]) == (2, 2)
    assert timedelta(seconds=50) < row["due_at"] - datetime.now(UTC) <= timedelta(seconds=60)
    attempts = await rows.all("attempts")
    assert [(a["number"], a["outcome"], a["http_status"]) for a in attempts] == [
        (1, "HTTP_ERROR", 500),
        (2, "TIMEOUT", None),
    ]


async def test_last_attempt_is_written_with_the_finished_row(recording: Recording) -> None:
    rows = recording.rows
    delivery_id, node_id = await rows.pending(await rows.subscription()), await rows.node()
    await recording.record(node_id, [], [rescheduled_row(delivery_id)])
    last = finished_row(
        rows,
        delivery_id,
        1,
        state="EXHAUSTED",
        http_status=500,
        outcome="HTTP_ERROR",
        start_time=datetime.now(UTC),
        error=b"no",
        response_excerpt=b"\0\xff",
    )

    assert await recording.record(node_id, [last]) == {delivery_id}

    (row,) = await rows.all("deliveries")
    assert (row["state"], row["attempt_count"], row["url"]) == ("EXHAUSTED", 2, None)
    attempts = await rows.all("attempts")
    assert [(a["number"], a["response_excerpt"]) for a in attempts] == [
        (1, b"sorry"),
        (2, b"\0\xff"),
    ]


@pytest.mark.parametrize("what", ["finished", "rescheduled"])
async def test_record_of_another_version_matches_no_row(recording: Recording, what: str) -> None:
    rows = recording.rows
    delivery_id, node_id = await rows.pending(await rows.subscription()), await rows.node()
    before = await rows.all("pending_deliveries")

    if what == "finished":
        matched = await recording.record(node_id, [finished_row(rows, delivery_id, 1)])
    else:
        matched = await recording.record(node_id, [], [rescheduled_row(delivery_id, 1)])

    assert matched == set()
    assert await rows.all("pending_deliveries") == before
    assert await rows.all("attempts") == await rows.all("deliveries") == []


@pytest.mark.parametrize("what", ["finished", "rescheduled", "park"])
@pytest.mark.parametrize("lease_s", [-0.001, None])
async def test_node_without_a_lease_records_nothing(
    recording: Recording, what: str, lease_s: float | None
) -> None:
    """The lease has ended, or the node's row is gone; the version still matches."""
    rows = recording.rows
    delivery_id = await rows.pending(await rows.subscription())
    node_id = rows.new_id() if lease_s is None else await rows.node(lease_s)
    before = await rows.all("pending_deliveries")

    if what == "park":
        bucket = delivery_id.int & 0xFF
        assert not await recording.store.park(node_id, bucket, delivery_id, 0, 60.0)
    elif what == "finished":
        assert await recording.record(node_id, [finished_row(rows, delivery_id)]) == set()
    else:
        assert await recording.record(node_id, [], [rescheduled_row(delivery_id)]) == set()

    assert await rows.all("pending_deliveries") == before
    assert await rows.all("attempts") == await rows.all("deliveries") == []


async def test_node_does_not_expire_during_its_record(
    recording: Recording, database_url: str
) -> None:
    """The record locks its node's row: a node that expires others waits, or skips it."""
    rows = recording.rows
    delivery_id, node_id = await rows.pending(await rows.subscription()), await rows.node(1.0)
    async with rival(database_url) as other:
        await other.execute("SELECT FROM pending_deliveries FOR UPDATE")
        writing = asyncio.create_task(recording.record(node_id, [finished_row(rows, delivery_id)]))
        await until_blocked(recording.database, "record")
        async with rival(database_url) as heir:
            locked = await heir.fetch(
                "SELECT FROM nodes WHERE node_id = $1 FOR UPDATE SKIP LOCKED", node_id
            )
        assert locked == []
        await other.execute("ROLLBACK")

    assert await writing == {delivery_id}


async def test_rows_of_a_batch_match_independently(recording: Recording) -> None:
    rows = recording.rows
    uid, node_id = await rows.subscription(), await rows.node()
    ids = [await rows.pending(uid) for _ in range(20)]
    finished = [finished_row(rows, each, number % 2) for number, each in enumerate(ids[:10])]
    rescheduled = [rescheduled_row(each, number % 2) for number, each in enumerate(ids[10:])]

    matched = await recording.record(node_id, finished, rescheduled)

    assert matched == set(ids[0:10:2]) | set(ids[10:20:2])
    assert len(await rows.all("deliveries")) == len(await rows.all("attempts")) == 5


async def test_invalid_row_rolls_back_its_batch(recording: Recording) -> None:
    rows = recording.rows
    uid, node_id = await rows.subscription(), await rows.node()
    good, bad = await rows.pending(uid), await rows.pending(uid)

    with pytest.raises(RejectedError) as refusal:
        await recording.record(
            node_id, [finished_row(rows, good)], [rescheduled_row(bad, outcome="NONSENSE")]
        )

    assert refusal.value.sqlstate == "23514"
    assert {row["version"] for row in await rows.all("pending_deliveries")} == {0}


async def test_park_postpones_a_row_without_an_attempt(recording: Recording) -> None:
    rows = recording.rows
    delivery_id, node_id = await rows.pending(await rows.subscription()), await rows.node()
    bucket = delivery_id.int & 0xFF

    assert await recording.store.park(node_id, bucket, delivery_id, 0, 3_600.0)
    assert not await recording.store.park(node_id, bucket, delivery_id, 0, 3_600.0)

    (row,) = await rows.all("pending_deliveries")
    assert (row["version"], row["attempt_count"]) == (1, 0)
    assert row["due_at"] > datetime.now(UTC) + timedelta(seconds=3_500)
    assert await rows.all("attempts") == []


# --------------------------------------------------------------------------- what a batch leads to


async def disabled_by(recording: Recording, uid: UUID, **fields: object) -> set[UUID]:
    values = {"reason": "GONE", "message": "410", "url": URL} | fields
    effect = Consequences(
        disabling=[Disabling(uid, **values)],  # type: ignore[arg-type]
        disable_after_s=5 * 86_400.0,
    )
    recorded = await recording.store.record(
        await recording.rows.node(), OutcomeRows(), lambda _matched: effect
    )
    return set(recorded.disabled)


async def test_disabling_is_in_the_change_log_and_raises_the_version(
    recording: Recording,
) -> None:
    uid = await recording.rows.subscription()

    assert await disabled_by(recording, uid) == {uid}

    (row,) = await recording.rows.all("subscriptions")
    assert (row["state"], row["state_reason"], row["state_message"]) == ("DISABLED", "GONE", "410")
    assert row["version"] == 2
    (change,) = await recording.rows.all("change_log")
    assert (change["kind"], change["subscription_uid"]) == ("SUBSCRIPTION", uid)


@pytest.mark.parametrize(
    "columns",
    [
        {"state": "PAUSED", "state_reason": "OPERATOR"},
        {"url": "https://example.com/another"},
        {"deleted_at": datetime(2026, 1, 1, tzinfo=UTC)},
    ],
)
async def test_subscription_changed_meanwhile_is_not_disabled(
    recording: Recording, columns: dict[str, object]
) -> None:
    uid = await recording.rows.subscription(**columns)

    assert await disabled_by(recording, uid) == set()

    assert await recording.rows.all("change_log") == []
    (row,) = await recording.rows.all("subscriptions")
    assert row["version"] == 1


async def test_failure_of_a_failover_url_disables_the_subscription(recording: Recording) -> None:
    other = "https://example.com/second"
    uid = await recording.rows.subscription(failover_urls=[other])

    assert await disabled_by(recording, uid, url=other) == {uid}


@pytest.mark.parametrize("days,is_disabled", [(None, 0), (4.9, 0), (5.1, 1)])
async def test_failing_disables_only_after_days_by_the_database_clock(
    recording: Recording, days: float | None, is_disabled: int
) -> None:
    since = None if days is None else datetime.now(UTC) - timedelta(days=days)
    uid = await recording.rows.subscription(failing_since=since)

    assert len(await disabled_by(recording, uid, reason="FAILING")) == is_disabled


async def test_failing_since_is_the_first_failure_after_the_last_success(
    recording: Recording,
) -> None:
    rows = recording.rows
    uid, node_id = await rows.subscription(), await rows.node()

    async def since() -> datetime | None:
        found: datetime | None = (await rows.all("subscriptions"))[0]["failing_since"]
        return found

    await recording.record(node_id, effect=Consequences(failing=[uid]))
    first = await since()
    await recording.record(node_id, effect=Consequences(failing=[uid]))
    assert await since() == first is not None
    await recording.record(node_id, effect=Consequences(recovered=[uid], failing=[uid]))
    second = await since()
    assert second is not None
    assert second > first
    await recording.record(node_id, effect=Consequences(recovered=[uid]))
    assert await since() is None


async def test_disabling_has_an_audit_entry_of_the_service(
    recording: Recording,
) -> None:
    uid = await recording.rows.subscription()
    with calling(Caller(principal="apiKeys/4rTq", scopes=frozenset())):
        assert await disabled_by(recording, uid) == {uid}
        assert await disabled_by(recording, uid) == set()

    (entry,) = await entries_of(recording.database)
    assert (entry.principal, entry.method) == ("hookline", "DisableSubscription")
    assert (shown(entry.before_json)["state"], shown(entry.after_json)["state"]) == (
        "ACTIVE",
        "DISABLED",
    )
    assert shown(entry.after_json)["state_reason"] == "GONE"
    (row,) = await recording.rows.all("subscriptions")
    assert entry.tenant_uid == row["tenant_uid"]
    await verified(recording.database)


async def test_disabling_does_not_wait_for_open_audit_drafts(
    recording: Recording, database_url: str
) -> None:
    """An open transaction with an audit draft does not block a record."""
    uid = await recording.rows.subscription()
    async with rival(database_url) as slow:
        await slow.execute("INSERT INTO audit_drafts (entry) VALUES ('{}')")
        assert await disabled_by(recording, uid) == {uid}
