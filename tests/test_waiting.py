"""DelayQueue returns when the thing is so, and says what it waited for when it never is."""

import asyncio

import pytest

from tests.waiting import until


async def test_it_returns_once_the_thing_is_so() -> None:
    loop, happened = asyncio.get_running_loop(), asyncio.Event()
    loop.call_later(0.02, happened.set)
    await until(happened.is_set, "the event")
    assert happened.is_set()


async def test_the_question_may_be_a_coroutine() -> None:
    answers = iter([False, False, True])

    async def holds() -> bool:
        return next(answers)

    await until(holds, "the third answer")
    assert list(answers) == []


async def test_a_vain_wait_says_what_it_waited_for() -> None:
    with pytest.raises(AssertionError, match=r"waited 0\.01 s in vain: the flood"):
        await until(lambda: False, "the flood", within_s=0.01)
