"""Checks that are quick run on the event loop; all others run where the kernel ends them."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from hookline_service.domain.errors import Reason, ResourceExhaustedError, UnavailableError
from hookline_service.domain.limits import Limits
from hookline_service.schema.checker import (
    Finding,
    OverBudgetError,
    SchemaChecker,
    SchemaUnusableError,
)
from tests.schema.hostile import HOSTILE, LOOKAHEAD, RECURSIVE, doubling, nested_lists

ORDER = '{"type": "object", "required": ["id"]}'
LONG = b'"%s"' % (b"x" * 60_000)
LIMITS = Limits(max_schema_cpu_ms=100, max_schema_memory_mb=96)


@pytest.fixture
async def checker() -> AsyncIterator[SchemaChecker]:
    """A checker with small budgets, and its process ended."""
    checker = SchemaChecker(LIMITS)
    yield checker
    await checker.stop()


def children() -> set[int]:
    """The processes that this one started and that still run."""
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(pid) for pid in path.read_text().split()}


async def test_an_ordinary_schema_needs_no_process(checker: SchemaChecker) -> None:
    before = children()
    schema = checker.read(ORDER)
    events = [(schema, b'{"id": 1}')] * 500 + [(schema, b"{}")]
    assert await checker.check("acme", events) == [None] * 500 + [
        Finding(['the value: "id" is a required property'])
    ]
    assert children() == before


@pytest.mark.parametrize("text, data", HOSTILE.values(), ids=HOSTILE.keys())
async def test_check_of_any_schema_ends_within_its_budget(
    checker: SchemaChecker, text: str, data: bytes
) -> None:
    """With an answer or with the name of the setting; and the event loop was free meanwhile."""
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            began_s = time.thread_time()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.thread_time() - began_s)

    watching = asyncio.create_task(watch())
    call = checker.check("acme", [(checker.read(text), data)])
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    watching.cancel()
    match outcome:
        case OverBudgetError(index=0, setting=setting):
            assert setting in {"HOOKLINE_MAX_SCHEMA_CPU_MS", "HOOKLINE_MAX_SCHEMA_MEMORY_MB"}
        case [found]:
            assert found is None or found.violations or found.is_cut
        case _:
            pytest.fail(f"neither an answer nor a setting: {outcome!r}")
    assert longest_s < 0.05


async def test_quick_verdict_is_returned_when_the_list_of_violations_is_too_expensive(
    checker: SchemaChecker,
) -> None:
    """The list would take 6 GB: the answer says that the data is invalid, and the list cut."""
    schema = checker.read(RECURSIVE)
    events = [(schema, nested_lists(40)), (schema, b'[["x"]]')]
    assert await checker.check("acme", events) == [Finding((), is_cut=True), None]


async def test_checks_continue_after_one_was_killed(checker: SchemaChecker) -> None:
    schema = checker.read(LOOKAHEAD)
    for _ in range(2):
        with pytest.raises(OverBudgetError) as ended:
            await checker.check("acme", [(schema, b'"yxy"'), (schema, LONG)])
        assert (ended.value.index, ended.value.setting) == (1, "HOOKLINE_MAX_SCHEMA_CPU_MS")
        assert await checker.check("acme", [(schema, b'"yxy"'), (schema, b'"xx"')]) == [
            None,
            Finding(['the value: "xx" does not match "(?!y)x*x*x*x*y"']),
        ]


async def test_memory_of_a_check_is_limited() -> None:
    """Patterns are compiled into automata, each within the limit of the engine."""
    checker = SchemaChecker(Limits(max_schema_cpu_ms=30_000, max_schema_memory_mb=96))
    patterns = [{"pattern": rf"\S{{{n},1000}}"} for n in range(1, 200)]
    schema = checker.read(json.dumps({"allOf": patterns}))
    with pytest.raises(OverBudgetError) as ended:
        await checker.check("acme", [(schema, b'"x"')])
    assert ended.value.setting == "HOOKLINE_MAX_SCHEMA_MEMORY_MB"
    await checker.stop()


async def test_queued_checks_of_tenants_run_in_rotation(checker: SchemaChecker) -> None:
    """One tenant's checks are all ended; another's waits for one of them, not for all."""
    hostile, ordinary = checker.read(LOOKAHEAD), checker.read(doubling())
    order: list[str] = []

    async def check(tenant_id: str, schema: str, data: bytes) -> None:
        with suppress(OverBudgetError):
            await checker.check(tenant_id, [(checker.read(schema), data)])
        order.append(tenant_id)

    assert hostile.cost is None
    assert ordinary.validator is not None
    many = [asyncio.create_task(check("evil", LOOKAHEAD, LONG)) for _ in range(4)]
    await asyncio.sleep(0)
    await check("acme", '{"pattern": "(?!x)"}', b'"y"')
    await asyncio.gather(*many)
    assert order.index("acme") <= 2


async def test_refusal_of_checks_beyond_the_queue_names_the_setting() -> None:
    checker = SchemaChecker(Limits(max_schema_cpu_ms=100, max_queued_schema_checks=4))
    schema = checker.read(LOOKAHEAD)
    calls = [asyncio.create_task(checker.check("evil", [(schema, LONG)])) for _ in range(8)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [one for one in outcomes if isinstance(one, ResourceExhaustedError)]
    assert len(refused) == 5  # one runs, two wait, and as many places are free for others
    assert refused[0].metadata == {"limit": "HOOKLINE_MAX_QUEUED_SCHEMA_CHECKS"}
    assert refused[0].reason is Reason.OVERLOADED
    await checker.stop()


async def test_cancelled_caller_does_not_kill_the_process(checker: SchemaChecker) -> None:
    schema = checker.read('{"pattern": "(?!x)"}')
    await checker.check("acme", [(schema, b'"y"')])
    before = children()
    call = asyncio.create_task(checker.check("acme", [(schema, b'"y"')]))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert await checker.check("acme", [(schema, b'"y"')]) == [None]
    assert children() == before


async def test_tenant_beyond_its_share_of_the_loop_is_checked_in_the_process() -> None:
    """However cheap each check is, a tenant that sends enough of them leaves time for others."""
    now_s = 0.0

    def perf_s() -> float:
        nonlocal now_s
        now_s += 0.002
        return now_s

    checker = SchemaChecker(LIMITS, perf_s=perf_s)
    before = children()
    schema = checker.read(ORDER)
    await checker.check("other", [(schema, b'{"id": 1}')] * 2)
    assert children() == before
    found = await checker.check("acme", [(schema, b'{"id": 1}')] * 100 + [(schema, b"{}")])
    assert found[:100] == [None] * 100
    assert found[100] == Finding(['the value: "id" is a required property'])
    assert len(children() - before) == 1
    await checker.stop()
    assert children() == before


async def test_checker_process_has_no_secrets_and_ends_with_its_node(
    checker: SchemaChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOKLINE_MASTER_KEY", "secret")
    before = children()
    await checker.check("acme", [(checker.read('{"pattern": "(?!x)"}'), b'"y"')])
    (pid,) = children() - before
    process = Path("/proc") / str(pid)
    assert b"HOOKLINE" not in (process / "environ").read_bytes()
    assert {int(fd.name) for fd in (process / "fd").iterdir()} <= {0, 1, 2}
    limits = (process / "limits").read_text()
    assert f"Max address space         {96 * 1024 * 1024}" in limits
    await checker.stop()
    assert not process.exists()


async def test_checker_process_with_grown_memory_is_replaced() -> None:
    """What earlier checks left behind must not count against a later one."""
    checker = SchemaChecker(Limits(max_schema_cpu_ms=5_000, max_schema_memory_mb=192))
    small = checker.read('{"pattern": "(?!x)"}')
    patterns = [{"pattern": rf"\S{{{n},300}}"} for n in range(1, 151)]
    large = checker.read(json.dumps({"not": {"allOf": patterns}}))
    before = children()
    await checker.check("acme", [(small, b'"y"')])
    first = children() - before
    await checker.check("acme", [(small, b'"y"')])
    assert children() - before == first
    await checker.check("acme", [(large, b'"y"')])
    assert not first & children()
    assert await checker.check("acme", [(small, b'"y"')]) == [None]
    await checker.stop()


@pytest.mark.parametrize("text", ['{"type": 1}', '{"$ref": "https://example.com/x"}'])
async def test_invalid_schema_is_unusable(checker: SchemaChecker, text: str) -> None:
    with pytest.raises(SchemaUnusableError):
        await checker.try_out(text, None)


async def test_stopped_checker_checks_nothing(checker: SchemaChecker) -> None:
    await checker.stop()
    with pytest.raises(UnavailableError):
        await checker.check("acme", [(checker.read(LOOKAHEAD), b'"y"')])
