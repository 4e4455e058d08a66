"""Master keys: every key in use is required at start, and rotation replaces any key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from hookline_service.domain.subscription import Subscription
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.master_keys import (
    KeyRotation,
    RotationReport,
    check_master_keys,
    forget_master_key,
)
from hookline_service.store.routes import load_routes
from hookline_service.store.secrets import MasterKeyError, SecretBox, SecretPlace, key_id_of
from hookline_service.store.subscriptions import Subscriptions
from tests.store.control_plane import (
    KEY,
    PLENTY,
    SECRET,
    ControlPlane,
    control_plane,
    draft,
    secret,
)

NEW_KEY, FOREIGN_KEY = b"n" * 32, b"f" * 32


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        yield plane


def keyed(*master_keys: bytes) -> TenantSecrets:
    return TenantSecrets(SecretBox(master_keys))


async def check(plane: ControlPlane, *master_keys: bytes) -> None:
    await check_master_keys(plane.database, SecretBox(master_keys))


async def registered(plane: ControlPlane) -> set[bytes]:
    return {row[0] for row in await plane.rows("SELECT key_id FROM master_keys")}


async def rotate(plane: ControlPlane, *master_keys: bytes) -> RotationReport:
    return await KeyRotation(plane.database, keyed(*master_keys), batch_max=2).run(lambda _: None)


async def fill(plane: ControlPlane, *tenants: str) -> list[Subscription]:
    """Create a subscription of each tenant."""
    made = []
    for tenant in tenants:
        await plane.tenants.create(tenant, "", {})
        made.append(await plane.create("orders", tenant))
    return made


async def seal_as_before(plane: ControlPlane, subscription: Subscription) -> None:
    """Encrypt a subscription's secret with the master key, as versions without data keys did."""
    (row,) = await plane.rows(
        "SELECT tenant_uid FROM subscriptions WHERE subscription_uid = $1", subscription.uid
    )
    place = SecretPlace(row["tenant_uid"], subscription.uid, 1)
    await plane.rows(
        "UPDATE signing_keys SET sealed_secret = $2 WHERE subscription_uid = $1",
        subscription.uid,
        plane.secrets.box.seal(SECRET.encode(), place),
    )


async def opens(plane: ControlPlane, made: list[Subscription], *master_keys: bytes) -> bool:
    uids = [subscription.uid for subscription in made]
    routes = await load_routes(plane.database, keyed(*master_keys), uids)
    return all([key.text for key in route.secrets] == [SECRET] for route in routes)


# ----------------------------------------------------------------------------------- at the start


async def test_a_node_with_another_master_key_does_not_start(plane: ControlPlane) -> None:
    await check(plane, KEY)
    await plane.create()
    with pytest.raises(MasterKeyError, match=key_id_of(KEY).hex()) as caught:
        await check(plane, FOREIGN_KEY)
    assert "HOOKLINE_MASTER_KEY lacks" in str(caught.value)
    assert await registered(plane) == {key_id_of(KEY)}
    await check(plane, KEY)
    await check(plane, KEY, FOREIGN_KEY)


async def test_master_key_of_a_stored_secret_is_required(
    plane: ControlPlane,
) -> None:
    await plane.create()
    with pytest.raises(MasterKeyError):
        await check(plane, FOREIGN_KEY)


async def test_one_of_several_nodes_with_different_master_keys_starts(plane: ControlPlane) -> None:
    keys = [bytes([number]) * 32 for number in range(6)]
    answers = await asyncio.gather(*[check(plane, key) for key in keys], return_exceptions=True)
    assert answers.count(None) == 1
    assert len(await registered(plane)) == 1


async def test_forgetting_a_lost_master_key_keeps_its_secrets(plane: ControlPlane) -> None:
    made = await fill(plane, "first")
    assert await forget_master_key(plane.database, key_id_of(KEY))
    assert not await forget_master_key(plane.database, key_id_of(KEY))
    await check(plane, FOREIGN_KEY)
    assert await opens(plane, made, KEY)


# --------------------------------------------------------------------------------------- rotation


async def test_after_a_rotation_the_new_key_alone_decrypts_everything(plane: ControlPlane) -> None:
    made = await fill(plane, "first", "second", "third", "fourth", "fifth")
    for subscription in made[:3]:
        await seal_as_before(plane, subscription)
    await check(plane, KEY)
    assert not await opens(plane, made, NEW_KEY)

    report = await rotate(plane, NEW_KEY, KEY)

    assert (report.data_keys, report.secrets, report.unreadable) == (5, 3, [])
    assert [(use.key_id, use.data_keys, use.secrets) for use in report.used] == [
        (key_id_of(NEW_KEY), 5, 0)
    ]
    assert await opens(plane, made, NEW_KEY)
    assert not await opens(plane, made, KEY)
    assert await registered(plane) == {key_id_of(NEW_KEY)}
    await check(plane, NEW_KEY)


async def test_repeated_rotation_changes_nothing(plane: ControlPlane) -> None:
    made = await fill(plane, "first", "second")
    await rotate(plane, NEW_KEY, KEY)
    rows = await plane.rows("SELECT * FROM data_keys ORDER BY tenant_uid")
    report = await rotate(plane, NEW_KEY)
    assert (report.data_keys, report.secrets) == (0, 0)
    assert await plane.rows("SELECT * FROM data_keys ORDER BY tenant_uid") == rows
    assert await opens(plane, made, NEW_KEY)


async def test_interrupted_rotation_continues(plane: ControlPlane) -> None:
    made = await fill(plane, *[f"t{number}" for number in range(7)])

    class CutError(Exception):
        pass

    def cut(done: int) -> None:
        if done == 4:
            raise CutError

    rotation = KeyRotation(plane.database, keyed(NEW_KEY, KEY), batch_max=2)
    with pytest.raises(CutError):
        await rotation.run(cut)
    assert await rotation.left() == 3
    assert await opens(plane, made, NEW_KEY, KEY)
    report = await rotate(plane, NEW_KEY, KEY)
    assert report.data_keys == 3
    assert await opens(plane, made, NEW_KEY)


async def test_concurrent_rotations_and_creations_lose_nothing(
    plane: ControlPlane,
) -> None:
    made = await fill(plane, *[f"t{number}" for number in range(9)])
    old_node = Subscriptions(plane.database, keyed(KEY, NEW_KEY))

    async def create(number: int) -> Subscription:
        wanted = draft(f"more-{number}", f"t{number}")
        return await old_node.create(wanted, secret(), max_of_tenant=PLENTY)

    one, other, more = await asyncio.gather(
        rotate(plane, NEW_KEY, KEY),
        rotate(plane, NEW_KEY, KEY),
        asyncio.gather(*[create(number) for number in range(9)]),
    )
    assert one.data_keys + other.data_keys == 9, "each is written once"
    assert await opens(plane, [*made, *more], NEW_KEY)


async def test_old_master_key_still_in_use_stays_registered(plane: ControlPlane) -> None:
    await fill(plane, "first")
    await rotate(plane, NEW_KEY, KEY)
    await plane.tenants.create("late", "", {})
    await plane.create("orders", "late")  # by a node that seals with KEY
    assert await registered(plane) == {key_id_of(NEW_KEY), key_id_of(KEY)}
    with pytest.raises(MasterKeyError):
        await check(plane, NEW_KEY)


async def test_rotation_reports_undecryptable_rows_and_leaves_them(plane: ControlPlane) -> None:
    made = await fill(plane, "first", "second")
    await seal_as_before(plane, made[0])
    await forget_master_key(plane.database, key_id_of(KEY))
    before = await plane.rows("SELECT * FROM data_keys ORDER BY tenant_uid")

    report = await rotate(plane, NEW_KEY)

    assert (report.data_keys, report.secrets) == (0, 0)
    assert len(report.unreadable) == 1
    assert key_id_of(KEY).hex() in report.unreadable[0]
    assert [(use.key_id, use.data_keys, use.secrets) for use in report.used] == [
        (key_id_of(KEY), 2, 1)
    ]
    assert await plane.rows("SELECT * FROM data_keys ORDER BY tenant_uid") == before
    assert await opens(plane, made, KEY)


async def test_rotation_reports_progress_after_each_batch(plane: ControlPlane) -> None:
    await fill(plane, *[f"t{number}" for number in range(5)])
    progress: list[int] = []
    rotation = KeyRotation(plane.database, keyed(NEW_KEY, KEY), batch_max=2)
    assert await rotation.left() == 5
    await rotation.run(progress.append)
    assert progress == [0, 2, 4, 5]
    assert await rotation.left() == 0


async def test_deleting_a_tenant_deletes_its_data_keys(plane: ControlPlane) -> None:
    await fill(plane, "first")
    await plane.subscriptions.delete("first", "orders")
    await plane.tenants.delete("first")
    assert await plane.value("SELECT count(*) FROM data_keys") == 0
