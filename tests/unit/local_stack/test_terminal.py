"""What a person at the terminal sees."""

import io
import json

import pytest
from rich.console import Console

from services.local_stack.state_folder import Endpoints
from services.local_stack.terminal import TerminalReporter

ENDPOINTS = Endpoints(
    pid=1,
    router="http://127.0.0.1:8000",
    experts=("http://127.0.0.1:8001",),
    database_url="postgresql://amoe:secret@127.0.0.1/amoe",
    redis_url="redis://:secret@127.0.0.1/0",
    storage="/state/storage",
    logs="/state/logs",
)


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


def _reporter(screen: io.StringIO, *, show_logs: bool = False) -> TerminalReporter:
    return TerminalReporter(Console(file=screen, width=60), ENDPOINTS, show_logs=show_logs)


def test_the_curl_command_is_in_one_piece_and_its_body_is_json(screen: io.StringIO) -> None:
    _reporter(screen).all_ready()

    text = screen.getvalue()
    assert "curl -s http://127.0.0.1:8000/generate" in text
    body = next(line for line in text.splitlines() if "-d '" in line).partition("'")[2].rpartition("'")[0]
    assert json.loads(body)["inputs"]


class _GoneTerminal(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError("Input/output error")


def test_a_terminal_that_has_gone_away_stops_nothing() -> None:
    reporter = TerminalReporter(Console(file=_GoneTerminal(), force_terminal=True), ENDPOINTS, show_logs=True)

    for tell in (reporter.starting, reporter.stopped):
        tell("router")
    reporter.all_ready()
    reporter.stopping()


def test_no_password_is_shown(screen: io.StringIO) -> None:
    _reporter(screen).all_ready()

    assert "secret" not in screen.getvalue()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('{"event": "served", "level": "info"}', False),
        ('{"event": "replica lost", "level": "warning"}', True),
        ("plain words", False),
    ],
)
def test_only_warnings_and_worse_are_shown(screen: io.StringIO, line: str, *, shown: bool) -> None:
    _reporter(screen).line("router", line)

    assert bool(screen.getvalue()) is shown


def test_all_lines_are_shown_on_request(screen: io.StringIO) -> None:
    _reporter(screen, show_logs=True).line("postgres", "ready to accept [connections]")

    assert screen.getvalue() == " postgres │ ready to accept [connections]\n"
