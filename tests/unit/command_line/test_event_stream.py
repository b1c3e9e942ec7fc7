"""Server-sent events from lines, and a job's events from connections that break."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from services.command_line.errors import Refused, Unreachable
from services.command_line.event_stream import ServerSentEvent, follow_job, read_events


def test_events_are_read_with_their_ids_and_comments_are_passed_over() -> None:
    text = "id: 7\ndata: {}\n\n: still here\n\ndata:one\r\ndata: two\r\n\r\nid: 9\ndata: cut o"

    assert list(read_events([text])) == [ServerSentEvent("7", "{}"), ServerSentEvent(None, "one\ntwo")]


def test_it_does_not_matter_where_a_stream_is_cut_into_pieces() -> None:
    text = "id: 1\ndata: line\u2028separator\x85next\n\n"

    for size in range(1, len(text) + 1):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert list(read_events(pieces)) == [ServerSentEvent("1", "line\u2028separator\x85next")]


class Service:
    """Speaks one list of lines per connection; an error stands for a connection that breaks or is refused."""

    def __init__(self, *connections: list[str | Exception], status: str = "succeeded") -> None:
        self.connections = list(connections)
        self.asked_after: list[str] = []
        self.status = status

    @contextmanager
    def stream(self, _method: str, _path: str, *, headers: dict[str, str], silence_s: float) -> Iterator[Any]:
        assert silence_s > 15.0
        self.asked_after.append(headers["last-event-id"])
        yield SimpleNamespace(iter_text=lambda: self._lines(self.connections.pop(0)))

    def _lines(self, lines: list[str | Exception]) -> Iterator[str]:
        for line in lines:
            if isinstance(line, Exception):
                raise line
            yield f"{line}\n"

    def get(self, _path: str) -> dict[str, str]:
        return {"status": "running" if self.connections else self.status}


def follow(service: Service, *, give_up_after_s: float = 60.0) -> list[Any]:
    return list(
        follow_job(
            service,  # type: ignore[arg-type]
            "job-1",
            give_up_after_s=give_up_after_s,
            on_trouble=lambda _: None,
            sleep=lambda _: None,
        )
    )


def test_a_connection_that_breaks_is_made_again_after_the_last_event() -> None:
    service = Service(
        ["id: 4", "data: 0", "", "id: 5", Unreachable("broke off")],
        [Refused("The database cannot be reached.", status=503)],
        [],
        ["id: 5", "data: 1", ""],
    )

    assert follow(service) == [0, 1]
    assert service.asked_after == ["0", "4", "4", "4"]


def test_a_job_that_is_not_there_is_not_asked_for_again() -> None:
    service = Service([Refused("No job.", status=404)], ["data: 1"])

    with pytest.raises(Refused):
        follow(service)
    assert len(service.asked_after) == 1


def test_it_gives_up_when_nobody_answers_for_long_enough() -> None:
    with pytest.raises(Unreachable):
        follow(Service([Unreachable("nobody")], ["data: 1"]), give_up_after_s=0.0)
