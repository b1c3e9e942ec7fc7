"""Several pieces of work of one request, a bounded number of them at a time."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


async def at_once(work: Sequence[Coroutine[Any, Any, Result]], *, limit: int) -> list[Result]:
    """All results in order, or the first failure, which ends the others; `limit` run at the same time."""
    places = asyncio.Semaphore(limit)

    async def done(piece: Coroutine[Any, Any, Result]) -> Result:
        async with places:
            return await piece

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(done(piece)) for piece in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        for piece in work:
            piece.close()  # what never got a place; the others are over and do not mind
    return [task.result() for task in tasks]
