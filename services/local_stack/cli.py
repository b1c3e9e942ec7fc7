"""The command line. Nothing heavy is imported before the command that needs it runs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from services.local_stack.demo_commands import demo_app

if TYPE_CHECKING:
    from services.local_stack.state_folder import StateFolder
    from services.shared.config import Settings

app = typer.Typer(name="adaptive-moe", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(demo_app, name="demo")

StateOption = Annotated[
    Path | None, typer.Option("--state", help="Folder of all that the stack keeps. Default: .state in the project.")
]


@app.command()
def up(
    *,
    state: StateOption = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="The router's port; 0 takes any free one.")] = None,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Expert services to run; they share the cores.")] = 1,
    logs: Annotated[bool, typer.Option("--logs", help="Show every line that the programs write.")] = False,
) -> None:
    """Start Postgres, Valkey, worker, expert services and router, and keep them running until Ctrl-C."""
    from services.local_stack.up import run_stack

    with _plain_errors():
        run_stack(_state_folder(state), port=port, num_replicas=replicas, show_logs=logs)


@app.command()
def down(
    *,
    state: StateOption = None,
    erase: Annotated[bool, typer.Option("--erase", help="Remove the state folder with all its data as well.")] = False,
) -> None:
    """Stop the stack of a state folder."""
    from services.local_stack.down import stop_stack

    with _plain_errors():
        folder = _state_folder(state)
        typer.echo(stop_stack(folder))
        if erase:
            folder.erase()
            typer.echo(f"Removed {folder.root}")


@app.command()
def status(*, state: StateOption = None) -> None:
    """Say whether a stack runs in a state folder, and which of its parts answer. Exit code 1 if not all do."""
    from services.local_stack.status import stack_status

    with _plain_errors():
        report = stack_status(_state_folder(state))
        for line in report.lines:
            typer.echo(line)
        raise typer.Exit(0 if report.all_answer else 1)


@app.command()
def migrate(
    *,
    state: StateOption = None,
    with_demo: Annotated[bool, typer.Option("--bootstrap", help="Import the demo too, as `bootstrap` does.")] = False,
) -> None:
    """Bring the database's tables up to date."""
    from services.local_stack.running_settings import running_settings
    from services.shared.database.session import migrate as bring_up_to_date

    with _plain_errors():
        settings = running_settings(_state_folder(state))
        bring_up_to_date(settings.database.url.get_secret_value())
        typer.echo("The tables are up to date.")
        if with_demo:
            _import_demo(settings)


@app.command()
def bootstrap(*, state: StateOption = None) -> None:
    """Import the demo's experts and activate a release of them, if nothing is registered yet."""
    from services.local_stack.running_settings import running_settings

    with _plain_errors():
        _import_demo(running_settings(_state_folder(state)))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed_version

    typer.echo(installed_version("adaptive-moe"))


def _import_demo(settings: "Settings") -> None:
    from services.local_stack.bootstrap import bootstrap_demo

    typer.echo(bootstrap_demo(settings))


def _state_folder(chosen: Path | None) -> "StateFolder":
    if sys.platform == "win32":
        typer.echo("Error: the local stack needs Linux or macOS. On Windows use docker compose or WSL.", err=True)
        raise typer.Exit(1)
    from services.local_stack.stack import PROJECT_ROOT
    from services.local_stack.state_folder import StateFolder

    return StateFolder(chosen or PROJECT_ROOT / ".state")


@contextmanager
def _plain_errors() -> Iterator[None]:
    """End with a sentence instead of a traceback for errors that a person can act on."""
    from pydantic import ValidationError

    from services.local_stack.errors import StackError
    from services.shared.errors import AmoeError

    try:
        yield
    except (StackError, AmoeError, ValidationError) as error:
        Console(stderr=True).print(f"[red]Error:[/] {error}", soft_wrap=True)
        raise typer.Exit(1) from error
