"""A record whose answer never comes: the record is repeated, and the webhook is not."""

import pathlib

import pytest

from tests.faults.scene import scene
from tests.pipeline.wire import Wire

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("where", ["cut_request", "cut_sent", "cut_answer"])
async def test_an_unanswered_record_is_repeated_and_its_webhook_is_not(
    database_url: str, tmp_path: pathlib.Path, where: str
) -> None:
    async with (
        Wire(database_url) as wire,
        scene(database_url, tmp_path, nodes=0) as stage,
    ):
        await stage.start_node(wire.url)
        await stage.subscribe(1)
        setattr(wire, where, stage.target.url("/0").encode())  # a record names where it was sent
        await stage.publish(["fault.n0"], 50)
        await wire.is_cut.wait()
        await stage.judge(duplicates_at_most=0)
