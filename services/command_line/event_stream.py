"""Server-sent events, and a job's events through however many connections it takes."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from services.command_line.api_client import ApiClient
from services.command_line.errors import Refused, Unreachable

FINAL_STATUSES: Final = frozenset({"succeeded", "failed", "cancelled"})
_SILENCE_S: Final = 45.0
"""The service sends a comment every 15 seconds: three missing ones mean that nobody is there."""

_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 5.0


@dataclass(frozen=True)
class ServerSentEvent:
    """An event with its id, if it has one."""

    id: str | None
    data: str


def read_events(pieces: Iterable[str]) -> Iterator[ServerSentEvent]:
    """The whole events of a text that comes in pieces; one that broke off in the middle is left out."""
    event_id: str | None = None
    data: list[str] = []
    for line in _lines(pieces):
        if not line:
            if data:
                yield ServerSentEvent(event_id, "\n".join(data))
            event_id, data = None, []
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif line.startswith("id:"):
            event_id = line.removeprefix("id:").strip()


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Whole lines. Only line feeds end them: U+2028 and its like, which `splitlines` takes for ends, may be data."""
    rest = ""
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        yield from (line.removesuffix("\r") for line in lines)


def follow_job(
    api: ApiClient,
    job_id: str,
    *,
    give_up_after_s: float,
    on_trouble: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any]]:
    """Every event of a job once, in order, until the job has ended.

    A connection that breaks is made again after the last event that came. Raises Unreachable when nobody answers for
    `give_up_after_s`, and Refused when there is no such job.
    """
    last_id = "0"
    heard_at = time.monotonic()
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            headers = {"last-event-id": last_id}
            path = f"/jobs/{job_id}/events"
            with api.stream("GET", path, headers=headers, silence_s=_SILENCE_S) as response:
                for event in read_events(response.iter_text()):
                    last_id = event.id or last_id
                    heard_at, pause_s = time.monotonic(), _FIRST_PAUSE_S
                    yield json.loads(event.data)
            if api.get(f"/jobs/{job_id}")["status"] in FINAL_STATUSES:
                return
            heard_at = time.monotonic()
        except (Unreachable, Refused) as error:
            # The service says 503 while its database is away; any other refusal is for good.
            if isinstance(error, Refused) and error.status < 500:
                raise
            if time.monotonic() - heard_at > give_up_after_s:
                raise
            on_trouble(str(error))
        sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
