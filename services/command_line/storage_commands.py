"""`adaptive-moe storage …`."""

from typing import Annotated

import typer

from services.command_line.connection import JsonOption, UrlOption, connected
from services.command_line.output import print_json, print_page, size

storage_app = typer.Typer(no_args_is_help=True, help="What lies on disk.")


@storage_app.command()
def gc(
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it; without this it is only listed.")] = False,
    unused_files: Annotated[
        bool, typer.Option("--unused-files", help="Also uploaded files that no job was ever given.")
    ] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what no release, expert version or job refers to, or remove it."""
    with connected(url) as api:
        garbage = api.post("/storage/gc", {"dry_run": not remove, "unused_files": unused_files})
        if as_json:
            print_json(garbage)
            return
        rows = [(piece["id"], size(piece["num_bytes"])) for piece in (*garbage["artifacts"], *garbage["uploads"])]
        print_page({"has_more": False}, ("id", "size"), rows)
        typer.echo(f"{size(garbage['num_bytes'])} {'removed' if remove else 'would be removed with --remove'}.")
