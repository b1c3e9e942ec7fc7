"""Several streams as one."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.router_service.merged_streams import merged


async def numbers(*values: int, gates: dict[int, asyncio.Event] | None = None) -> AsyncIterator[int]:
    """The values, each as soon as its gate opens."""
    for value in values:
        if gates is not None and value in gates:
            await gates[value].wait()
        yield value


async def breaking(value: int) -> AsyncIterator[int]:
    yield value
    raise RuntimeError("broken")


class TestMerged:
    @pytest.mark.parametrize("num_streams", [1, 3])
    async def test_every_item_comes_with_its_stream_and_every_end_is_told(self, num_streams: int) -> None:
        streams = [numbers(10 * index, 10 * index + 1) for index in range(num_streams)]

        items = [item async for item in merged(streams)]

        for index in range(num_streams):
            assert [value for number, value in items if number == index] == [10 * index, 10 * index + 1, None]

    async def test_nobody_waits_for_a_slower_one(self) -> None:
        gates = {1: asyncio.Event()}
        stream = merged([numbers(1, gates=gates), numbers(2, 3)])

        first = [await anext(stream) for _ in range(3)]
        gates[1].set()
        rest = [item async for item in stream]

        assert first == [(1, 2), (1, 3), (1, None)]
        assert rest == [(0, 1), (0, None)]

    async def test_a_failure_ends_all_and_leaves_no_task(self) -> None:
        stream = merged([breaking(1), numbers(2, gates={2: asyncio.Event()})])

        with pytest.raises(RuntimeError, match="broken"):
            [item async for item in stream]

        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_closing_it_early_leaves_no_task(self) -> None:
        stream = merged([numbers(1, 2), numbers(3, gates={3: asyncio.Event()})])
        await anext(stream)

        await stream.aclose()

        assert asyncio.all_tasks() == {asyncio.current_task()}
