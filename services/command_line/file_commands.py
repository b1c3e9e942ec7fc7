"""`adaptive-moe files …`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from services.command_line.api_client import ApiClient
from services.command_line.connection import AfterOption, JsonOption, LimitOption, UrlOption, connected, listing
from services.command_line.errors import BadInput
from services.command_line.output import moment, print_json, print_page, size, transfer

files_app = typer.Typer(no_args_is_help=True, help="Training text and the like.")


@files_app.command()
def upload(
    path: Annotated[Path, typer.Argument(help="JSON lines of text, prompt and completion or messages, or plain text.")],
    *,
    purpose: Annotated[str, typer.Option(help="What it is for.")] = "fine-tune",
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a file; prints its id, which jobs take."""
    with connected(url) as api:
        file = send_file(api, path, purpose=purpose, quiet=as_json)
        if as_json:
            print_json(file)
        else:
            typer.echo(file["id"])


@files_app.command("list")
def list_files(
    *,
    purpose: Annotated[str | None, typer.Option(help="Only these.")] = None,
    limit: LimitOption = 20,
    after: AfterOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List uploaded files, the newest first."""
    with connected(url) as api:
        answer, files = listing(api, "/files", purpose=purpose, limit=limit, after=after)
        if as_json:
            print_json(answer)
            return
        rows = [
            (file["id"], file["filename"], size(file["num_bytes"]), file["purpose"], moment(file["created_at"]))
            for file in files
        ]
        print_page(answer, ("id", "name", "size", "purpose", "created"), rows)


def send_file(api: ApiClient, path: Path, *, purpose: str, quiet: bool) -> dict[str, Any]:
    """Upload a file with a progress bar; what the API says of it."""
    sent: dict[str, Any] = send_files(api, "/files", fields={"purpose": purpose}, paths=[("file", path)], quiet=quiet)
    return sent


def send_files(api: ApiClient, path: str, *, fields: dict[str, str], paths: list[tuple[str, Path]], quiet: bool) -> Any:
    """POST files as parts of a form, each with a progress bar; the API's answer."""
    with transfer(quiet=quiet) as progress:
        parts = []
        try:
            for field, file in paths:
                opened = progress.open(file, "rb", description=file.name)
                parts.append((field, (file.name, opened)))
            return api.send_form(path, fields=fields, files=parts)
        except OSError as error:
            raise BadInput(f"{error.filename} cannot be read: {error.strerror}.") from error
        finally:
            for _, (_, opened) in parts:
                opened.close()
