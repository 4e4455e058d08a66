"""Stored subscriptions: every change raises epoch and version, and is in the change log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from uuid import UUID

import asyncpg
import pytest

from hookline_service.domain.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    HooklineError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
)
from hookline_service.domain.ids import LAST_UUID, bucket_of
from hookline_service.domain.subscription import (
    DeliveryLimits,
    HttpTarget,
    PayloadFormat,
    RetryPolicy,
    Subscription,
    SubscriptionState,
    SubscriptionStateReason,
)
from hookline_service.store.database import Database, OutcomeUnknownError
from hookline_service.store.subscriptions import SQL, Subscriptions
from tests.store.control_plane import ControlPlane, control_plane, draft, secret

RICH = draft(
    "rich",
    display_name="All of it ☂",
    event_types=("order.created", "user.*", "*"),
    target=HttpTarget(
        url="https://example.com/a?b=%20",
        failover_urls=("https://example.org/", "https://example.net/"),
        headers={"X-One": "1", "authorization": "Bearer x"},
        timeout_s=1.5,
    ),
    retry_policy=RetryPolicy(schedule_s=(0.0, 0.001, 604_800.0)),
    limits=DeliveryLimits(max_per_second=0.5, max_in_flight=7),
    payload_format=PayloadFormat.RAW,
    propagate_trace=True,
    labels={"team": "eu ☂"},
)


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        yield plane


async def test_subscription_is_read_as_created(plane: ControlPlane) -> None:
    made = await plane.subscriptions.create(RICH, secret(), max_of_tenant=9)
    assert made == await plane.subscriptions.get("acme", "rich")
    made_here = {"uid", "etag", "create_time", "update_time", "signing_keys"}
    for field in Subscription.__dataclass_fields__.keys() - made_here:
        assert getattr(made, field) == getattr(RICH, field), field
    assert made.create_time == made.update_time
    assert [key.expire_time for key in made.signing_keys] == [None]
    statement = "SELECT bucket FROM subscriptions WHERE subscription_uid = $1"
    assert await plane.value(statement, made.uid) == bucket_of(made.uid)


def renamed(name: str) -> Callable[[Subscription], Subscription]:
    return lambda seen: replace(seen, display_name=name)


CHANGES: dict[str, Callable[[ControlPlane], Awaitable[object]]] = {
    "update": lambda plane: plane.subscriptions.change("acme", "orders", renamed("new")),
    "pause": lambda plane: plane.subscriptions.pause("acme", "orders"),
    "resume": lambda plane: plane.subscriptions.resume("acme", "orders"),
    "rotate": lambda plane: plane.subscriptions.rotate(
        "acme", "orders", secret("whsec_" + "n" * 32), overlap_s=60
    ),
    "delete": lambda plane: plane.subscriptions.delete("acme", "orders"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_every_change_raises_epoch_and_version_and_is_in_the_change_log(
    plane: ControlPlane, change: str
) -> None:
    """Fails if a statement lacks any of the three."""
    made = await plane.create()
    if change == "resume":
        await plane.subscriptions.pause("acme", "orders")
    other = await plane.create("other")
    epoch, logged = await plane.epoch(), await plane.changes()
    (before,) = await plane.rows(
        "SELECT * FROM subscriptions WHERE subscription_uid = $1", made.uid
    )
    await CHANGES[change](plane)
    (after,) = await plane.rows("SELECT * FROM subscriptions WHERE subscription_uid = $1", made.uid)
    assert await plane.epoch() == after["changed_epoch"] == epoch + 1
    assert after["version"] == before["version"] + 1
    assert await plane.changes() == [*logged, made.uid]
    load = await plane.index("acme", epoch, (await plane.tenants.get("acme")).uid)
    assert [(row.subscription_uid, row.is_deleted) for row in load.changed] == [
        (made.uid, change == "delete")
    ]
    assert await plane.subscriptions.get("acme", "other") == other


async def test_creation_raises_the_epoch_and_is_in_the_change_log(plane: ControlPlane) -> None:
    epoch = await plane.epoch()
    made = await plane.create()
    assert await plane.epoch() == epoch + 1
    assert await plane.changes() == [made.uid]


async def test_equal_update_is_not_a_change(plane: ControlPlane) -> None:
    made = await plane.create()
    assert await plane.subscriptions.change("acme", "orders", lambda seen: seen) == made
    assert await plane.subscriptions.resume("acme", "orders") == made
    paused = await plane.subscriptions.pause("acme", "orders")
    assert await plane.subscriptions.pause("acme", "orders") == paused
    assert len(await plane.changes()) == 2


# --------------------------------------------------------------------------------- pause and resume


async def test_resume_clears_the_pause_and_the_recorded_failures(plane: ControlPlane) -> None:
    made = await plane.create()
    await plane.rows("UPDATE subscriptions SET failing_since = now()")
    paused = await plane.subscriptions.pause("acme", "orders")
    assert paused.state is SubscriptionState.PAUSED
    assert paused.state_reason is SubscriptionStateReason.OPERATOR
    assert paused.state_message == "paused by an operator"
    assert (await plane.route(made.uid)).failing_since is not None
    resumed = await plane.subscriptions.resume("acme", "orders")
    assert (resumed.state, resumed.state_reason, resumed.state_message) == (
        SubscriptionState.ACTIVE,
        None,
        "",
    )
    assert (await plane.route(made.uid)).failing_since is None


async def test_an_update_keeps_the_recorded_failures(plane: ControlPlane) -> None:
    made = await plane.create()
    await plane.rows("UPDATE subscriptions SET failing_since = now()")
    await plane.subscriptions.change("acme", "orders", renamed("new"))
    assert (await plane.route(made.uid)).failing_since is not None


async def test_pausing_a_disabled_subscription_keeps_its_reason(plane: ControlPlane) -> None:
    await plane.create()
    await plane.rows(
        """UPDATE subscriptions SET state = 'DISABLED', state_reason = 'GONE',
           state_message = 'answered 410', version = version + 1"""
    )
    paused = await plane.subscriptions.pause("acme", "orders")
    assert paused.state_reason is SubscriptionStateReason.OPERATOR
    assert "answered 410" in paused.state_message


# -------------------------------------------------------------------------------------- concurrency


async def test_concurrent_creations_with_one_id_create_one_subscription(
    plane: ControlPlane,
) -> None:
    answers = await asyncio.gather(*[plane.create() for _ in range(8)], return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, AlreadyExistsError)]
    assert len(refused) == 7
    assert {error.reason for error in refused} == {Reason.SUBSCRIPTION_ALREADY_EXISTS}
    assert await plane.count() == 1
    assert len(await plane.changes()) == 1


async def test_concurrent_changes_are_all_stored(plane: ControlPlane) -> None:
    await plane.create()

    async def add(letter: str) -> None:
        def decide(seen: Subscription) -> Subscription:
            return replace(seen, display_name=seen.display_name + letter)

        await plane.subscriptions.change("acme", "orders", decide)

    await asyncio.gather(*[add(letter) for letter in "abcd"])
    seen = await plane.subscriptions.get("acme", "orders")
    assert sorted(seen.display_name) == list("abcd")
    assert await plane.epoch() == 1 + 1 + 4


async def test_a_stale_etag_is_rejected_without_a_change(plane: ControlPlane) -> None:
    made = await plane.create()
    changed = await plane.subscriptions.change("acme", "orders", renamed("1"), etag=made.etag)
    stale: list[Awaitable[object]] = [
        plane.subscriptions.change("acme", "orders", renamed("2"), etag=made.etag),
        plane.subscriptions.delete("acme", "orders", etag=made.etag),
    ]
    for call in stale:
        with pytest.raises(AbortedError) as refused:
            await call
        assert refused.value.reason == Reason.ETAG_MISMATCH
    assert await plane.subscriptions.get("acme", "orders") == changed
    await plane.subscriptions.delete("acme", "orders", etag=changed.etag)


async def test_one_of_two_updates_with_the_same_etag_succeeds(plane: ControlPlane) -> None:
    made = await plane.create()
    answers = await asyncio.gather(
        *[
            plane.subscriptions.change("acme", "orders", renamed(str(n)), etag=made.etag)
            for n in range(6)
        ],
        return_exceptions=True,
    )
    assert sum(isinstance(answer, AbortedError) for answer in answers) == 5


async def test_concurrent_deletions_are_counted_once(plane: ControlPlane) -> None:
    await plane.create()
    await plane.create("other")
    answers = await asyncio.gather(
        *[plane.subscriptions.delete("acme", "orders") for _ in range(6)], return_exceptions=True
    )
    assert sum(isinstance(answer, NotFoundError) for answer in answers) == 5
    assert await plane.count() == 1


# ----------------------------------------------------------------------------------- quota and ends


async def test_the_quota_is_exact_and_names_its_setting(plane: ControlPlane) -> None:
    async def create(n: int) -> Subscription:
        return await plane.subscriptions.create(draft(f"s{n}"), secret(), max_of_tenant=3)

    answers = await asyncio.gather(*[create(n) for n in range(8)], return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, ResourceExhaustedError)]
    assert len(refused) == 5
    assert refused[0].reason == Reason.QUOTA_EXCEEDED
    assert "HOOKLINE_MAX_SUBSCRIPTIONS_PER_TENANT" in refused[0].message
    assert refused[0].metadata["limit"] == "HOOKLINE_MAX_SUBSCRIPTIONS_PER_TENANT"
    (first, *_) = await plane.subscriptions.list_page("acme", limit=1)
    await plane.subscriptions.delete("acme", first.subscription_id)
    await create(9)
    with pytest.raises(ResourceExhaustedError):
        await create(10)


async def test_recreated_subscription_has_a_new_uid_and_inherits_nothing(
    plane: ControlPlane,
) -> None:
    before = await plane.create(labels={"a": "1"})
    await plane.subscriptions.pause("acme", "orders")
    await plane.subscriptions.delete("acme", "orders")
    after = await plane.create()
    assert after.uid != before.uid
    assert after.etag != before.etag
    assert (after.labels, after.state) == ({}, SubscriptionState.ACTIVE)
    with pytest.raises(AbortedError):
        await plane.subscriptions.delete("acme", "orders", etag=before.etag)


async def test_unknown_and_foreign_subscriptions_raise_the_same_error(plane: ControlPlane) -> None:
    await plane.tenants.create("other", "", {})
    await plane.create(tenant_id="other")
    await plane.create("gone")
    await plane.subscriptions.delete("acme", "gone")
    subscriptions = plane.subscriptions
    messages = set()
    now = await subscriptions.now()
    for name in [("acme", "orders"), ("acme", "gone"), ("unknown", "orders")]:
        for call in (
            subscriptions.get(*name),
            subscriptions.pause(*name),
            subscriptions.resume(*name, discard_before=now),
            subscriptions.delete(*name),
            subscriptions.rotate(*name, secret(), overlap_s=0),
        ):
            with pytest.raises(NotFoundError) as refused:
                await call
            assert refused.value.reason == Reason.SUBSCRIPTION_NOT_FOUND
            messages.add(refused.value.message.replace(name[0], "T").replace(name[1], "S"))
    assert len(messages) == 1


async def test_creation_and_list_require_the_tenant(plane: ControlPlane) -> None:
    with pytest.raises(NotFoundError) as refused:
        await plane.create(tenant_id="unknown")
    assert refused.value.reason == Reason.TENANT_NOT_FOUND
    with pytest.raises(NotFoundError):
        await plane.subscriptions.list_page("unknown", limit=1)
    await plane.rows("UPDATE tenants SET state = 'DELETING'")
    with pytest.raises(FailedPreconditionError) as erased:
        await plane.create()
    assert erased.value.reason == Reason.TENANT_DELETING
    assert await plane.subscriptions.list_page("acme", limit=1) == []


# -------------------------------------------------------------------------------------------- lists


async def ids_of_pages(plane: ControlPlane, tenant_id: str, limit: int) -> list[str]:
    found: list[str] = []
    before = LAST_UUID
    while page := await plane.subscriptions.list_page(tenant_id, before=before, limit=limit):
        assert len(page) <= limit
        found += [f"{one.tenant_id}/{one.subscription_id}" for one in page]
        before = page[-1].uid
    return found


async def test_pages_are_newest_first_and_complete(plane: ControlPlane) -> None:
    await plane.tenants.create("other", "", {})
    for n in range(5):
        await plane.create(f"s{n}")
        await plane.create(f"s{n}", "other")
    await plane.subscriptions.delete("acme", "s2")
    assert await ids_of_pages(plane, "acme", 2) == ["acme/s4", "acme/s3", "acme/s1", "acme/s0"]
    across = await ids_of_pages(plane, "-", 3)
    assert across[:3] == ["other/s4", "acme/s4", "other/s3"]
    assert len(across) == 9


async def test_read_across_tenants_requires_a_unique_id(plane: ControlPlane) -> None:
    await plane.tenants.create("other", "", {})
    made = await plane.create()
    assert await plane.subscriptions.get("-", "orders") == made
    await plane.create(tenant_id="other")
    with pytest.raises(HooklineError, match="name the tenant"):
        await plane.subscriptions.get("-", "orders")


# -------------------------------------------------------------------------------------------- costs


async def test_the_thousandth_creation_reads_no_more_rows_than_the_tenth(database_url: str) -> None:
    """Creating 100,000 subscriptions one by one stays linear, including quota and index."""
    read = """SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables
              WHERE relname IN ('subscriptions', 'tenants', 'signing_keys')"""
    async with control_plane(database_url, pool_size=1) as plane:
        tenant = await plane.tenants.get("acme")

        async def rows_read_by_creating(first: int) -> int:
            await plane.rows("SELECT pg_stat_force_next_flush()")
            before = await plane.value(read)
            for n in range(first, first + 5):
                epoch = await plane.epoch()
                await plane.create(f"s{n}")
                assert len((await plane.index("acme", epoch, tenant.uid)).changed) == 1
            await plane.rows("SELECT pg_stat_force_next_flush()")
            return int(await plane.value(read) - before)

        for n in range(10):
            await plane.create(f"early{n}")
        await plane.rows("ANALYZE")
        early = await rows_read_by_creating(0)
        for n in range(1_000):
            await plane.create(f"more{n}")
        await plane.rows("ANALYZE")
        late = await rows_read_by_creating(100)
    assert 0 < late <= early + 25


# ------------------------------------------------------------------------------------ a lost answer


class LosingAnswers(Database):
    """A database that loses the results of chosen statements after they ran."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.loses: str | None = None

    async def fetch(self, statement: str, *args: object) -> list[asyncpg.Record]:
        rows = await super().fetch(statement, *args)
        if statement == self.loses:
            self.loses = None
            raise OutcomeUnknownError("the connection broke")
        return rows


async def test_creation_with_a_lost_answer_is_not_repeated(
    database_url: str, plane: ControlPlane
) -> None:
    database = LosingAnswers(database_url)
    await database.open()
    database.loses = SQL.create
    made = await Subscriptions(database, plane.secrets).create(draft(), secret(), max_of_tenant=9)
    await database.close()
    assert await plane.subscriptions.list_page("acme", limit=9) == [made]
    assert await plane.count() == 1
    assert made.uid != UUID(int=0)
