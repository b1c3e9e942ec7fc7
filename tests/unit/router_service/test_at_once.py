"""Several pieces of work, a bounded number at a time."""

import asyncio

import pytest

from services.router_service.at_once import at_once


class TestAtOnce:
    @pytest.mark.parametrize("limit", [1, 3, 20])
    async def test_results_are_in_order_and_no_more_run_than_may(self, limit: int) -> None:
        running: set[int] = set()
        most = 0

        async def work(number: int) -> int:
            nonlocal most
            running.add(number)
            most = max(most, len(running))
            for _ in range(10 - number):
                await asyncio.sleep(0)
            running.remove(number)
            return number

        assert await at_once([work(number) for number in range(10)], limit=limit) == list(range(10))
        assert most == min(limit, 10)

    async def test_the_first_failure_ends_the_others_also_those_that_have_no_place_yet(self) -> None:
        running: set[str] = set()

        async def fail() -> None:
            raise ValueError("first")

        async def wait(name: str) -> None:
            running.add(name)
            try:
                await asyncio.Event().wait()
            finally:
                running.remove(name)

        with pytest.raises(ValueError, match="first"):
            await at_once([wait("first"), fail(), wait("second"), wait("third")], limit=2)

        assert not running

    async def test_whoever_stops_waiting_ends_all(self) -> None:
        ended: list[int] = []

        async def wait(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(number)

        task = asyncio.create_task(at_once([wait(number) for number in range(4)], limit=3))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert sorted(ended) == [0, 1, 2]
