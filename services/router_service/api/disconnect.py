"""Stops work that nobody waits for any more."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

Result = TypeVar("Result")
CLIENT_CLOSED_REQUEST: Final = 499
"""nginx's status for it; only logs ever see it."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client hangs up (ClientDisconnect). Its body must be read."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def install_disconnect_handler(app: FastAPI) -> None:
    """A client that is gone is not an error of ours."""

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(ClientDisconnect, gone)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
