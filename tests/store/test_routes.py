"""Reads of subscriptions: matching indexes of one snapshot, routes with valid secrets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from hookline_service.domain.errors import HooklineError, Reason
from hookline_service.domain.subscription import RetryPolicy, Subscription
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.routes import IndexRow, load_index, load_routes
from hookline_service.store.secrets import SecretBox, key_id_of
from hookline_service.store.subscriptions import Subscriptions
from tests.pipeline.rival import BUMP, rival, until_blocked
from tests.store.control_plane import SECRET, ControlPlane, control_plane, draft, secret

OTHER = "whsec_" + "b" * 32
THIRD = "whsec_" + "c" * 32


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        yield plane


# ---------------------------------------------------------------------------------------- the index


async def test_the_index_of_a_tenant_is_all_its_live_subscriptions(plane: ControlPlane) -> None:
    await plane.tenants.create("other", "", {})
    kept = await plane.create("kept", event_types=("order.*", "*"))
    await plane.create("gone")
    await plane.create("theirs", "other")
    await plane.subscriptions.delete("acme", "gone")
    await plane.subscriptions.pause("acme", "kept")
    load = await plane.index()
    assert load.is_whole
    assert load.epoch == await plane.epoch()
    assert [(row.subscription_uid, row.event_types) for row in load.changed] == [
        (kept.uid, ("order.*", "*"))
    ]


async def test_incremental_load_returns_only_later_changes(plane: ControlPlane) -> None:
    await plane.create("same")
    deleted, changed = await plane.create("deleted"), await plane.create("changed")
    have = await plane.index()
    await plane.subscriptions.delete("acme", "deleted")
    await plane.subscriptions.change(
        "acme", "changed", lambda seen: replace(seen, event_types=("a",))
    )
    new = await plane.create("new")
    load = await plane.index("acme", have.epoch, have.tenant_uid)
    assert not load.is_whole
    assert {row.subscription_uid: row.is_deleted for row in load.changed} == {
        deleted.uid: True,
        changed.uid: False,
        new.uid: False,
    }
    again = await plane.index("acme", load.epoch, load.tenant_uid)
    assert (again.epoch, again.changed) == (load.epoch, ())


async def test_the_index_has_the_attempt_budget_of_each_policy(plane: ControlPlane) -> None:
    policies = {
        "none": (RetryPolicy(), 0.0, 10),
        "schedule": (RetryPolicy(schedule_s=(7.0, 1.0)), 7.0, 2),
        "doubling": (RetryPolicy(max_attempts=4, min_backoff_s=1.0), 0.0, 4),
    }
    for name, (policy, _, _) in policies.items():
        await plane.create(name, retry_policy=policy)
    by_uid = {row.subscription_uid: row for row in (await plane.index()).changed}
    for name, (_, first_delay_s, max_attempts) in policies.items():
        row = by_uid[(await plane.subscriptions.get("acme", name)).uid]
        assert (row.first_delay_s, row.max_attempts) == (first_delay_s, max_attempts)


async def test_an_unknown_tenant_has_no_index(plane: ControlPlane) -> None:
    assert await load_index(plane.database, "unknown") is None
    await plane.tenants.delete("acme")
    assert await load_index(plane.database, "acme", 1) is None


async def test_loads_concurrent_with_changes_miss_none(plane: ControlPlane) -> None:
    """Epoch and changes are of one snapshot: the next load has what this one leaves out."""
    known: dict[UUID, IndexRow] = {}
    is_over = False

    async def follow() -> None:
        epoch, uid = 0, None
        while True:
            was_over = is_over
            load = await plane.index("acme", epoch, uid)
            assert load.epoch >= epoch
            epoch, uid = load.epoch, load.tenant_uid
            for row in load.changed:
                if row.is_deleted:
                    known.pop(row.subscription_uid, None)
                else:
                    known[row.subscription_uid] = row
            if was_over:
                return

    async def change(n: int) -> None:
        for turn in range(6):
            await plane.create(f"s{n}-{turn}", event_types=("before",))
            await plane.subscriptions.change(
                "acme", f"s{n}-{turn}", lambda seen: replace(seen, event_types=("after",))
            )
            if turn % 2:
                await plane.subscriptions.delete("acme", f"s{n}-{turn}")

    follower = asyncio.create_task(follow())
    await asyncio.gather(*[change(n) for n in range(5)])
    is_over = True
    await follower
    live = await plane.rows("SELECT subscription_uid FROM subscriptions WHERE deleted_at IS NULL")
    assert known.keys() == {row[0] for row in live}
    assert len(known) == 15
    assert {row.event_types for row in known.values()} == {("after",)}


@pytest.mark.parametrize("kind", ["update", "rotate", "delete"])
async def test_a_change_that_waits_for_another_takes_the_epoch_after_it(
    plane: ControlPlane, database_url: str, kind: str
) -> None:
    """With the epoch before the other change, a load in between would hide it from the next."""
    made = await plane.create()
    tenant = await plane.tenants.get("acme")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "update": lambda: plane.subscriptions.pause("acme", "orders"),
        "rotate": lambda: plane.subscriptions.rotate("acme", "orders", secret(OTHER), overlap_s=0),
        "delete": lambda: plane.subscriptions.delete("acme", "orders"),
    }
    async with rival(database_url) as other:
        await other.execute(BUMP, tenant.uid)
        change = asyncio.ensure_future(calls[kind]())
        await until_blocked(plane.database, "calls")
        await other.execute("COMMIT")
        await change
    statement = "SELECT changed_epoch FROM subscriptions WHERE subscription_uid = $1"
    assert await plane.value(statement, made.uid) == await plane.epoch() == 4


# ------------------------------------------------------------------------------------------- routes


def keyed(*master_keys: bytes) -> TenantSecrets:
    return TenantSecrets(SecretBox(master_keys))


async def test_a_route_is_the_subscription_and_its_secret(plane: ControlPlane) -> None:
    made = await plane.create()
    route = await plane.route(made.uid)
    tenant = await plane.tenants.get("acme")
    assert route.subscription == made
    assert (route.tenant_uid, route.version, route.is_deleted) == (tenant.uid, 1, False)
    assert [(key.text, key.expire_time) for key in route.secrets] == [(SECRET, None)]
    assert SECRET not in repr(route)


async def test_a_tombstone_has_a_route_without_secrets(plane: ControlPlane) -> None:
    made = await plane.create()
    await plane.subscriptions.delete("acme", "orders")
    route = await plane.route(made.uid)
    assert (route.is_deleted, route.secrets, route.secret_fault) == (True, (), "")
    assert await plane.value("SELECT count(*) FROM signing_keys") == 0


async def test_unknown_uids_have_no_routes(plane: ControlPlane) -> None:
    made = await plane.create()
    found = await load_routes(plane.database, plane.secrets, [UUID(int=1), made.uid])
    assert [route.subscription.uid for route in found] == [made.uid]
    assert await load_routes(plane.database, plane.secrets, []) == []


async def test_a_secret_without_its_master_key_affects_its_route_alone(plane: ControlPlane) -> None:
    readable = await plane.create("readable")
    both_keys = keyed(b"n" * 32, b"k" * 32)
    await plane.tenants.create("other", "", {})
    sealed = await Subscriptions(plane.database, both_keys).create(
        draft("sealed", "other"), secret(), max_of_tenant=9
    )
    good, bad = await plane.route(readable.uid), await plane.route(sealed.uid)
    assert (good.secret_fault, len(good.secrets)) == ("", 1)
    assert bad.secrets == ()
    assert key_id_of(b"n" * 32).hex() in bad.secret_fault
    (opened,) = await load_routes(plane.database, both_keys, [sealed.uid])
    assert opened.secrets[0].text == SECRET


async def test_a_secret_moved_to_another_subscription_is_not_decrypted(plane: ControlPlane) -> None:
    victim, thief = await plane.create("victim"), await plane.create("thief")
    await plane.rows(
        """UPDATE signing_keys SET sealed_secret =
               (SELECT sealed_secret FROM signing_keys WHERE subscription_uid = $1)
           WHERE subscription_uid = $2""",
        victim.uid,
        thief.uid,
    )
    assert "moved" in (await plane.route(thief.uid)).secret_fault


async def test_the_database_holds_no_secret_in_clear_text(plane: ControlPlane) -> None:
    await plane.create()
    await plane.subscriptions.rotate("acme", "orders", secret(OTHER), overlap_s=60)
    tables = await plane.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    dump = ""
    for (table,) in tables:
        dump += "\n".join(
            row[0]
            for row in await plane.rows(f'SELECT t::text FROM "{table}" t')  # noqa: S608 - ours
        )
    assert "https://example.com/hook" in dump
    for text in (SECRET, OTHER):
        assert text not in dump
        assert text.removeprefix("whsec_") not in dump
        assert text.encode().hex() not in dump
        assert text.removeprefix("whsec_").encode().hex() not in dump


# ---------------------------------------------------------------------------------------- rotations


async def live(plane: ControlPlane, made: Subscription) -> list[str]:
    """Return the secrets that sign, newest first; the resource must list as many keys."""
    route = await plane.route(made.uid)
    keys = (await plane.subscriptions.get("acme", "orders")).signing_keys
    assert [key.expire_time for key in keys] == [key.expire_time for key in route.secrets]
    return [key.text for key in route.secrets]


async def test_both_secrets_sign_until_the_overlap_ends(plane: ControlPlane) -> None:
    made = await plane.create()
    rotation = await plane.subscriptions.rotate("acme", "orders", secret(OTHER), overlap_s=3_600)
    assert await live(plane, made) == [OTHER, SECRET]
    current, previous = (await plane.subscriptions.get("acme", "orders")).signing_keys
    assert current.expire_time is None
    assert previous.expire_time == rotation.previous_expire_time
    assert rotation.previous_expire_time == current.create_time + timedelta(hours=1)
    await plane.turn_clock("59 minutes")
    assert await live(plane, made) == [OTHER, SECRET]
    await plane.turn_clock("61 minutes")
    assert await live(plane, made) == [OTHER]


async def test_an_overlap_of_zero_expires_the_old_secret_at_once(plane: ControlPlane) -> None:
    made = await plane.create()
    rotation = await plane.subscriptions.rotate("acme", "orders", secret(OTHER), overlap_s=0)
    assert await live(plane, made) == [OTHER]
    assert rotation.previous_expire_time <= await plane.subscriptions.now()


async def test_a_third_secret_expires_the_oldest(plane: ControlPlane) -> None:
    made = await plane.create()
    for text in (OTHER, THIRD):
        await plane.subscriptions.rotate("acme", "orders", secret(text), overlap_s=3_600)
    assert await live(plane, made) == [THIRD, OTHER]
    assert await plane.value("SELECT count(*) FROM signing_keys") == 2


async def test_importing_the_current_secret_again_changes_nothing(plane: ControlPlane) -> None:
    made = await plane.create()
    first = await plane.subscriptions.rotate("acme", "orders", secret(OTHER), overlap_s=3_600)
    etag = (await plane.subscriptions.get("acme", "orders")).etag
    again = await plane.subscriptions.rotate("acme", "orders", secret(OTHER), overlap_s=60)
    assert again == first
    assert (await plane.subscriptions.get("acme", "orders")).etag == etag
    assert await live(plane, made) == [OTHER, SECRET]


async def test_concurrent_rotations_leave_two_valid_secrets_and_one_current(
    plane: ControlPlane,
) -> None:
    made = await plane.create()
    texts = [f"whsec_{letter * 32}" for letter in "abc"]
    answers = await asyncio.gather(
        *[
            plane.subscriptions.rotate("acme", "orders", secret(text), overlap_s=3_600)
            for text in texts
        ]
    )
    assert len(answers) == 3
    assert len(await live(plane, made)) == 2
    assert (await live(plane, made))[0] in texts
    expire_times = [row[0] for row in await plane.rows("SELECT expire_time FROM signing_keys")]
    assert expire_times.count(None) == 1


async def test_a_rotation_recovers_from_a_lost_master_key(plane: ControlPlane) -> None:
    made = await plane.create()
    other = await plane.create("other")
    lost = keyed(b"n" * 32)
    await Subscriptions(plane.database, lost).rotate("acme", "orders", secret(OTHER), overlap_s=0)
    (route,) = await load_routes(plane.database, lost, [made.uid])
    assert ([key.text for key in route.secrets], route.secret_fault) == ([OTHER], "")
    # What the lost key encrypted is kept: the key may be found again.
    assert [key.text for key in (await plane.route(other.uid)).secrets] == [SECRET]


CALLS: dict[str, Callable[[ControlPlane], Awaitable[object]]] = {
    "rotate": lambda plane: plane.subscriptions.rotate(
        "acme", "orders", secret(OTHER), overlap_s=0
    ),
    "change": lambda plane: plane.subscriptions.change(
        "acme", "orders", lambda seen: replace(seen, display_name=seen.display_name + "x")
    ),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_constantly_changing_subscription_fails_with_concurrent_change(
    plane: ControlPlane, call: str
) -> None:
    await plane.create()
    await plane.rows(
        """CREATE FUNCTION change_meanwhile() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN RETURN NULL; END $$"""
    )
    await plane.rows(
        """CREATE TRIGGER quicker BEFORE UPDATE ON subscriptions
           FOR EACH ROW EXECUTE FUNCTION change_meanwhile()"""
    )
    with pytest.raises(HooklineError) as refused:
        await CALLS[call](plane)
    assert refused.value.reason == Reason.CONCURRENT_CHANGE
