"""Postgres without stalling the event loop: one transaction per call, in threads of its own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from services.shared.database.session import session_factory
from services.shared.errors import InvalidRequest, Unavailable

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_RETRY_AFTER_S: Final = 2.0


class Transactions:
    """Runs functions that take a Session, each in a transaction that commits at its end and rolls back on an error.

    As many at once as the pool has connections, so a database that hangs holds up nothing but its own callers.
    """

    def __init__(self, engine: Engine, *, num_threads: int) -> None:
        self._engine = engine
        self._sessions = session_factory(engine)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="database")

    async def run(
        self,
        work: Callable[Concatenate[Session, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """`work(session, ...)` and its commit; Unavailable when Postgres cannot be reached."""

        def transaction() -> Result:
            with self._sessions.begin() as session:
                return work(session, *args, **kwargs)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, transaction)
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise database_unavailable() from error
        except DataError as error:
            raise InvalidRequest("The request holds a character or number that cannot be looked up or kept.") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise database_unavailable() from error
            raise

    def close(self) -> None:
        """Wait for the running transactions and close the connections."""
        self._threads.shutdown()
        self._engine.dispose()


def database_unavailable() -> Unavailable:
    """The error for a database that is down: generation goes on, what needs rows does not."""
    return Unavailable(
        "The database cannot be reached: try again shortly.", code="database_unavailable", retry_after_s=_RETRY_AFTER_S
    )


def plain_text(value: Any) -> Any:
    """`value` as Postgres can keep it: NUL characters become U+FFFD, in nested values too."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd")
    if isinstance(value, dict):
        return {plain_text(key): plain_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_text(item) for item in value]
    return value
