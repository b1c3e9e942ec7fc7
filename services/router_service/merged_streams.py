"""Several streams as one, in the order in which their items come."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from typing import Any, TypeVar

import anyio

Item = TypeVar("Item")


async def merged(streams: Sequence[AsyncIterator[Item]]) -> AsyncGenerator[tuple[int, Item | None]]:
    """Every item with the number of its stream, and None when that stream has ended; the first failure ends all."""
    if len(streams) == 1:
        async for item in streams[0]:
            yield 0, item
        yield 0, None
        return
    waiting = {asyncio.create_task(_next(stream)): index for index, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                index, found = waiting.pop(task), task.result()
                yield index, found[0] if found else None
                if found:
                    waiting[asyncio.create_task(_next(streams[index]))] = index
    finally:
        await _end(waiting)


async def _end(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        # Shielded, and not gathered: a second cancellation would reach tasks while they close their connections.
        with anyio.CancelScope(shield=True):
            await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, so that it is not logged as forgotten: one failure has been raised already


async def _next(stream: AsyncIterator[Item]) -> tuple[Item] | None:
    async for item in stream:
        return (item,)
    return None
