"""The command line without a stack."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from services.command_line.main import app

RUNNER = CliRunner()


COMMANDS = (
    *("up", "down", "status", "migrate", "bootstrap", "demo", "version"),
    *("jobs", "experts", "files", "releases", "storage", "generate"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_help(command: str) -> None:
    result = RUNNER.invoke(app, ["--help"])

    assert result.exit_code == 0
    assert command in result.output


@pytest.mark.parametrize(
    "arguments", [("--help",), ("up", "--help"), ("demo", "--help"), ("jobs", "--help"), ("version",)]
)
def test_nothing_heavy_is_imported_before_it_is_needed(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys\n"
        "from services.command_line.main import app\n"
        f"app({list(arguments)!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'sqlalchemy', 'celery', 'fastapi', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert answer.returncode == 0, answer.stderr


def test_down_and_status_say_that_nothing_runs(tmp_path: object) -> None:
    down = RUNNER.invoke(app, ["down", "--state", f"{tmp_path}/state"])
    status = RUNNER.invoke(app, ["status", "--state", f"{tmp_path}/state"])

    assert (down.exit_code, status.exit_code) == (0, 1)
    assert "Nothing runs in" in down.output
    assert "Nothing runs in" in status.output


def test_a_nonsense_setting_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("AMOE_ROUTER_SERVICE__PORT", "eight thousand")

    result = RUNNER.invoke(app, ["up", "--state", f"{tmp_path}/state"])

    assert result.exit_code == 1
    assert "router_service.port" in result.output
    assert "Traceback" not in result.output
