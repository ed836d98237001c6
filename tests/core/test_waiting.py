"""Waiting with a limit: what it answers, and that it never hides a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from fleetfit.core.waiting import within


def test_it_says_whether_the_wait_ended_in_time() -> None:
    async def run() -> None:
        event = asyncio.Event()
        assert not await within(event.wait(), 0.01)
        event.set()
        assert await within(event.wait(), 10)
        assert await within(event.wait(), None)

    asyncio.run(run())


@pytest.mark.parametrize("turns", range(4))
def test_a_loop_that_is_cancelled_as_its_wait_ends_stops(turns: int) -> None:
    async def run() -> None:
        bell = asyncio.Event()

        async def loop() -> None:
            while True:
                bell.clear()
                await within(bell.wait(), 0.05)

        task = asyncio.create_task(loop())
        await asyncio.sleep(0.01)
        bell.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=2)
        task.cancel()
        assert done and task.cancelled()

    asyncio.run(run())


def test_what_was_waited_for_is_cancelled_with_the_wait() -> None:
    async def run() -> None:
        ended = asyncio.Event()

        async def long() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        task = asyncio.create_task(within(long(), None))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 2)

    asyncio.run(run())
