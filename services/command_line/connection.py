"""Options that all client commands share, and the connection that they make."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from services.command_line.api_client import ApiClient
from services.command_line.errors import CommandError, Unreachable

DEFAULT_STATE = Path(__file__).resolve().parents[2] / ".state"

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="AMOE_URL", help="Address of the router service. Default: that of the stack that runs here."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print what the API answered, as JSON.")]
LimitOption = Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")]
AfterOption = Annotated[str | None, typer.Option(help="Go on behind this one: the last of the list before.")]


@contextmanager
def connected(url: str | None) -> Iterator[ApiClient]:
    """A client for one command, which ends with a line and an exit code where something is wrong."""
    try:
        with ApiClient(url or local_url(), api_key=os.environ.get("AMOE_API_KEY")) as api:
            yield api
    except CommandError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error


def local_url() -> str:
    """Where the router service of the stack in the default state folder listens; Unreachable when none runs."""
    if sys.platform != "win32":
        from services.local_stack.state_folder import StateFolder

        endpoints = StateFolder(DEFAULT_STATE).endpoints()
        if endpoints is not None:
            return endpoints.router
    raise Unreachable(
        "No stack runs here: start one with `adaptive-moe up`, or say where one is with --url or in AMOE_URL."
    )


def listing(api: ApiClient, path: str, **parameters: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A page as it was answered, and its items."""
    answer = api.get(path, **parameters)
    return answer, answer["data"]
