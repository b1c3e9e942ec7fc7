"""What `up` shows: one line for each program as it becomes ready, and afterwards what needs attention."""

import contextlib
import json
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from services.local_stack.state_folder import Endpoints

_COLOURS: Final = {
    "postgres": "blue",
    "valkey": "magenta",
    "expert": "green",
    "worker": "yellow",
    "router": "cyan",
}
_LEVEL_COLOURS: Final = {"warning": "yellow", "error": "red", "critical": "bold red"}
_SPEAKS_TO_PEOPLE: Final = "migrate"
DEMO_PROMPT: Final = (
    "Problem: Hugo has 33 plums. Oscar has 25 fewer than Hugo. How many plums does Oscar have?\nSolution:"
)


class TerminalReporter:
    """Prints to a terminal or, line by line and without colours, to whatever stands in for one."""

    def __init__(self, console: Console, endpoints: Endpoints, *, show_logs: bool) -> None:
        self._console = console
        self._endpoints = endpoints
        self._show_logs = show_logs
        self._waiting: dict[str, None] = {}
        self._status = console.status("")

    def starting(self, name: str) -> None:
        """Add `name` to what is being waited for."""
        self._waiting[name] = None
        self._show_waiting()

    def ready(self, name: str, *, seconds: float) -> None:
        """Tick `name` off."""
        self._waiting.pop(name, None)
        self._print(Text.assemble(("  ✓ ", "green"), f"{name:<10}", (f"{seconds:5.1f} s", "dim")))
        self._show_waiting()

    def died(self, name: str, *, reason: str, retry_in_s: float) -> None:
        """Say that `name` will be started again."""
        log = f"{self._endpoints.logs}/{name}.log"
        self._print(
            Text.assemble(("  ! ", "red"), f"{name} {reason}; starting it again in {retry_in_s:.1f} s. Its log: {log}")
        )

    def all_ready(self) -> None:
        """Say where everything is."""
        router = self._endpoints.router
        body = json.dumps({"inputs": DEMO_PROMPT, "parameters": {"max_new_tokens": 40, "details": True}})
        self._print(f"\nAdaptive MoE is ready at [bold]{router}[/]\n")
        self._print_plain(f"  curl -s {router}/generate -H 'content-type: application/json' \\\n    -d '{body}'\n")
        self._print_plain(f"API and examples: {router}/docs")
        self._print_plain(f"Logs:             {self._endpoints.logs}")
        self._print("Ctrl-C stops everything.\n")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._waiting.clear()
        with contextlib.suppress(OSError):
            self._status.stop()
        self._print("\nStopping (Ctrl-C again: at once)")

    def stopped(self, name: str) -> None:
        """Tick off what has ended."""
        self._print(Text.assemble(("  ■ ", "dim"), name))

    def line(self, name: str, text: str) -> None:
        """Show a program's line: all of them with --logs, otherwise warnings and worse."""
        level, message = _parse(text)
        wanted = self._show_logs or level in _LEVEL_COLOURS or name == _SPEAKS_TO_PEOPLE
        if wanted and message:
            prefix = (f"{name:>9} │ ", _COLOURS.get(name.partition("-")[0], "white"))
            self._print(Text.assemble(prefix, (message, _LEVEL_COLOURS.get(level, ""))), soft_wrap=True)

    def _show_waiting(self) -> None:
        with contextlib.suppress(OSError):
            if not self._waiting or not self._console.is_terminal:
                self._status.stop()
                return
            self._status.update(f"waiting for {', '.join(self._waiting)} …")
            self._status.start()

    def _print_plain(self, text: str) -> None:
        """Text that can be copied: not wrapped, no markup."""
        self._print(text, markup=False, highlight=False, soft_wrap=True)

    def _print(self, text: str | Text, **style: Any) -> None:
        """Print; a terminal that has gone away must not keep the stack from being stopped in order."""
        with contextlib.suppress(OSError):
            self._console.print(text, **style)


def _parse(line: str) -> tuple[str, str]:
    """Level and message of a log line: a JSON object from our services, anything from other programs."""
    if not line.startswith("{"):
        return "", line
    try:
        entry = json.loads(line)
    except ValueError:
        return "", line
    extras = {key: value for key, value in entry.items() if key not in _LOG_KEYS}
    details = "".join(f" {key}={value}" for key, value in extras.items())
    return str(entry.get("level", "")), f"{entry.get('event', '')}{details}"


_LOG_KEYS: Final = frozenset({"event", "level", "timestamp", "logger", "service"})
