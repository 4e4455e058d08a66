"""Reloads of an index: only changed rows are read, and an older load replaces no newer one."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from hookline_service.domain.errors import NotFoundError, Reason, UnavailableError
from hookline_service.pipeline.publishing.commit import MAX_MISSES
from hookline_service.pipeline.publishing.group import Published
from hookline_service.pipeline.publishing.matching import Matcher
from hookline_service.store.database import Database
from hookline_service.store.routes import load_index
from hookline_service.store.subscriptions import Subscriptions
from tests.pipeline.rig import Rig, order_created, running
from tests.pipeline.rival import BUMP, STALL, copy_subscription, rival, until_blocked
from tests.pipeline.subscribing import create
from tests.pipeline.wire import Wire
from tests.waiting import until

TARGET = "http://127.0.0.1:1024/"


# --------------------------------------------------------------------------------- the index


async def test_reload_reads_only_changed_subscriptions(
    rig: Rig, subscriptions: Subscriptions
) -> None:
    for number in range(5):
        await create(subscriptions, f"s-{number}", TARGET)
    await subscriptions.delete("acme", "s-4")
    whole = await load_index(rig.database, "acme")
    assert whole is not None
    assert (whole.is_whole, len(whole.changed)) == (True, 4)

    await subscriptions.pause("acme", "s-1")
    await subscriptions.delete("acme", "s-2")
    later = await load_index(rig.database, "acme", whole.epoch, whole.tenant_uid)
    assert later is not None
    assert (later.is_whole, [row.is_deleted for row in later.changed]) == (False, [False, True])
    assert later.epoch == whole.epoch + 2

    nothing = await load_index(rig.database, "acme", later.epoch, later.tenant_uid)
    assert nothing is not None
    assert (nothing.is_whole, nothing.epoch, nothing.changed) == (False, later.epoch, ())


async def test_index_and_its_epoch_are_of_one_snapshot(
    rig: Rig, subscriptions: Subscriptions
) -> None:
    """Neither includes a change that has not committed."""
    uid = await create(subscriptions, "first", TARGET)
    async with rival(rig.url) as other:
        await copy_subscription(other, uid, rig.new_uid())
        before = await load_index(rig.database, "acme")
        await other.execute("COMMIT")
    after = await load_index(rig.database, "acme")
    assert before is not None
    assert after is not None
    assert (after.epoch, len(after.changed)) == (before.epoch + 1, len(before.changed) + 1)


async def test_recreated_tenant_has_no_subscriptions_of_the_old_one(
    rig: Rig, subscriptions: Subscriptions
) -> None:
    await create(subscriptions, "first", TARGET)
    before = await rig.matcher.reload("acme")
    await rig.database.fetch("UPDATE tenants SET deleted_at = now(), epoch = epoch + 1")
    with pytest.raises(NotFoundError):
        await rig.publisher.publish("acme", [order_created()])
    uid = await rig.tenant("acme")
    await rig.database.fetch("UPDATE tenants SET epoch = 50 WHERE tenant_uid = $1", uid)

    (published,) = await rig.publisher.publish("acme", [order_created()])

    assert published.delivery_count == 0
    index = await rig.matcher.index("acme")
    assert (index.uid, index.epoch) == (uid, 50)
    assert index.uid != before.uid


async def test_publish_after_a_recreated_tenant_uses_its_new_index(
    rig: Rig, subscriptions: Subscriptions
) -> None:
    """The publisher holds the old tenant's index, and has not read the change."""
    await create(subscriptions, "first", TARGET)
    await rig.publisher.publish("acme", [order_created()])
    await rig.database.fetch("UPDATE tenants SET deleted_at = now(), epoch = epoch + 1")
    uid = await rig.tenant("acme")

    (published,) = await rig.publisher.publish("acme", [order_created()])

    (stored,) = await rig.database.fetch(
        "SELECT tenant_uid FROM events WHERE event_id = $1", published.event_id
    )
    assert (stored["tenant_uid"], published.delivery_count) == (uid, 0)


class DelayedReader:
    """A reader that reads at once and answers later, so that its answer is outdated."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.gates: list[asyncio.Event] = []

    async def fetch(self, statement: str, *args: object) -> list[asyncpg.Record]:
        """Return the rows after the gate of this read opens."""
        rows = await self._database.fetch(statement, *args)
        self.gates.append(gate := asyncio.Event())
        await gate.wait()
        return rows

    @property
    def history_id(self) -> UUID | None:
        """Return the history of the database."""
        return self._database.history_id

    async def until_read(self, count: int) -> None:
        """Wait until this many reads are held back."""
        await until(lambda: len(self.gates) >= count, f"{count} reads")


async def test_older_load_does_not_replace_a_newer_index(
    rig: Rig, subscriptions: Subscriptions
) -> None:
    """The newer index stays, for whole and partial loads, after an eviction of either index."""
    slow = DelayedReader(rig.database)
    matcher = Matcher(rig.database, max_index_bytes=1)
    await rig.tenant("globex")

    old_whole = asyncio.create_task(matcher.read(slow, "acme"))
    await slow.until_read(1)
    await create(subscriptions, "first", TARGET)
    index = await matcher.reload("acme")
    old_part = asyncio.create_task(matcher.read(slow, "acme"))
    await slow.until_read(2)
    await create(subscriptions, "second", TARGET)
    await matcher.reload("acme")
    epoch = index.epoch

    slow.gates[0].set()
    assert await old_whole is index
    slow.gates[1].set()
    assert await old_part is index
    assert (index.epoch, len(index.match("x"))) == (epoch, 2)

    # The part is read since an index that is then evicted; an older whole load replaces it.
    older = asyncio.create_task(Matcher.read(matcher, slow, "acme"))
    await slow.until_read(3)
    matcher_epoch = index.epoch
    await matcher.reload("globex")
    assert matcher.cached("acme") is None
    slow.gates[2].set()
    assert (await older).epoch == matcher_epoch


async def test_partial_load_is_not_applied_to_an_older_index(
    rig: Rig, subscriptions: Subscriptions
) -> None:
    """Otherwise a change between the two would be missing, and the epoch would not show it."""
    slow = DelayedReader(rig.database)
    matcher = Matcher(rig.database, max_index_bytes=1)
    await rig.tenant("globex")

    whole = asyncio.create_task(matcher.read(slow, "acme"))  # sees no subscription
    await slow.until_read(1)
    await create(subscriptions, "first", TARGET)
    await matcher.reload("acme")  # sees the first
    await create(subscriptions, "second", TARGET)
    part = asyncio.create_task(matcher.read(slow, "acme"))  # what came after the first
    await slow.until_read(2)
    await matcher.reload("globex")  # acme's index is evicted
    slow.gates[0].set()
    await whole
    slow.gates[1].set()

    assert len((await part).match("x")) == 2
    assert len((await matcher.index("acme")).match("x")) == 2


async def test_group_with_two_indexes_of_a_tenant_writes_with_the_older_epoch(
    database_url: str,
) -> None:
    """One queued call may hold an evicted index, and another one an index read later."""
    async with running(database_url, max_index_bytes=1) as rig:
        acme, *_ = [await rig.tenant(name) for name in ("acme", "globex", "zeta")]
        await rig.subscription(acme, TARGET, schedule_s=[90.0])

        async def queue(tenant: str) -> asyncio.Task[list[Published]]:
            task = asyncio.create_task(rig.publisher.publish(tenant, [order_created()]))
            await until(lambda: rig.matcher.cached(tenant) is not None, f"{tenant} is matched")
            await asyncio.sleep(0)
            return task

        async with rival(rig.url) as other:
            await other.execute(STALL)
            tasks = [await queue("zeta")]
            await until_blocked(rig.database)
            tasks += [await queue("acme"), await queue("globex")]
            await rig.subscription(acme, TARGET, schedule_s=[90.0])
            tasks += [await queue("acme")]
            await other.execute("COMMIT")
            results = await asyncio.gather(*tasks)

    assert [result[0].delivery_count for result in results] == [0, 2, 0, 2]


async def test_concurrent_callers_share_one_read(rig: Rig) -> None:
    await rig.tenant()
    await asyncio.gather(*(rig.publisher.publish("acme", [order_created()]) for _ in range(30)))
    assert rig.matcher.reads == 1


async def test_cancelled_caller_does_not_cancel_the_shared_read(rig: Rig) -> None:
    await rig.tenant()
    async with rival(rig.url) as other:
        await other.execute("LOCK TABLE tenants IN ACCESS EXCLUSIVE MODE")
        impatient, patient = (asyncio.create_task(rig.matcher.reload("acme")) for _ in range(2))
        await until_blocked(rig.database, "calls")
        impatient.cancel()
        await other.execute("ROLLBACK")
        assert (await patient).tenant_id == "acme"
        with pytest.raises(asyncio.CancelledError):
            await impatient


async def test_unknown_tenant_is_not_found_and_not_cached(rig: Rig) -> None:
    for _ in range(2):
        with pytest.raises(NotFoundError) as refusal:
            await rig.publisher.publish("acme", [order_created()])
        assert refusal.value.reason is Reason.TENANT_NOT_FOUND
    await rig.tenant()
    await rig.publisher.publish("acme", [order_created()])


async def test_lost_read_fails_the_publish_as_unavailable(rig: Rig) -> None:
    await rig.tenant()
    async with Wire(rig.url) as wire:
        database = Database(wire.url, pool_size=1)
        await database.open()
        matcher = Matcher(database)
        await matcher.reload("acme")
        wire.cut_answer = b"acme"
        with pytest.raises(UnavailableError):
            await matcher.reload("acme")
        assert (await matcher.reload("acme")).tenant_id == "acme"
        await database.close()


async def test_publish_to_a_tenant_that_changes_constantly_succeeds(rig: Rig) -> None:
    """Changes never pause, so that a match before the lock is always outdated."""
    tenant_uid = await rig.tenant()
    await rig.publisher.publish("acme", [order_created(0)])
    is_over = asyncio.Event()

    async def change() -> None:
        database = Database(rig.url, pool_size=1)
        await database.open()
        while not is_over.is_set():
            await database.fetch(BUMP, tenant_uid)
        await database.close()

    changers = [asyncio.create_task(change()) for _ in range(8)]
    try:
        for number in range(10):
            keyed = order_created(idempotency_key=f"k{number}")
            await rig.publisher.publish("acme", [order_created(number), keyed])
    finally:
        is_over.set()
        await asyncio.gather(*changers)
    rows = await rig.database.fetch("SELECT count(*) FROM events")
    assert rows[0][0] == 1 + 20
    assert rig.matcher.reads <= 1 + 10 * (MAX_MISSES + 1)
