"""`adaptive-moe evaluate`: what a release is worth on held-out text, from files to a report."""

from pathlib import Path
from typing import Annotated, Any

import typer

from services.command_line.completion import complete_releases
from services.command_line.connection import JsonOption, UrlOption, connected
from services.command_line.download import download_artifacts
from services.command_line.fields import SettingsOption, pairs, put, value_of
from services.command_line.file_commands import send_file
from services.command_line.job_watch import GIVE_UP_S, watch_job
from services.command_line.output import print_json


def evaluate(  # noqa: PLR0913 - what, on what, and where the report goes
    held_out: Annotated[
        list[str],
        typer.Argument(metavar="NAME=PATH...", help="Held-out text of an expert or domain: `math=math.jsonl`."),
    ],
    *,
    release: Annotated[
        str | None, typer.Option(help="Default: the active one.", autocompletion=complete_releases)
    ] = None,
    unknown: Annotated[Path | None, typer.Option(help="Text that belongs to no expert.")] = None,
    settings: SettingsOption = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report with its figures. Without it: text here.")
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a release on held-out text, watch that, and print or keep the report."""
    with connected(url) as api:
        body: dict[str, Any] = {"kind": "evaluation", "held_out": {}}
        for name, path in pairs(held_out, option="held-out text"):
            body["held_out"][name] = send_file(api, Path(path), purpose="fine-tune", quiet=as_json)["id"]
        if unknown is not None:
            body["unknown_file"] = send_file(api, unknown, purpose="fine-tune", quiet=as_json)["id"]
        if release is not None:
            body["release"] = release
        for field, value in pairs(settings, option="--set"):
            put(body, field, value_of(value))
        job_id = api.post("/jobs", body)["id"]
        watch_job(api, job_id, as_json=as_json, give_up_after_s=GIVE_UP_S)
        if folder is not None:
            written = download_artifacts(api, job_id, folder, quiet=as_json)
            typer.echo(f"Wrote {len(written)} files to {folder}", err=True)
        if as_json:
            print_json(api.get(f"/jobs/{job_id}")["result"])
        elif folder is None:
            with api.stream("GET", f"/jobs/{job_id}/artifacts/report/report.md") as response:
                typer.echo("".join(response.iter_text()))
