"""A job on the terminal: a progress bar and what it has to say, from its events."""

import json
import sys
from typing import Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from services.command_line.api_client import ApiClient
from services.command_line.errors import JobUnsuccessful
from services.command_line.event_stream import follow_job
from services.command_line.output import moment

GIVE_UP_S: Final = 120.0
"""Without any answer."""
_COLOURS: Final = {"warn": "yellow", "error": "red"}


def watch_job(api: ApiClient, job_id: str, *, as_json: bool, give_up_after_s: float) -> None:
    """Show a job to its end. Raises JobUnsuccessful unless it succeeds."""
    show = _as_lines if as_json else _on_terminal
    show(api, job_id, give_up_after_s)
    job = api.get(f"/jobs/{job_id}")
    if job["status"] != "succeeded":
        reason = (job["error"] or {}).get("message")
        raise JobUnsuccessful(f"{job_id} {job['status']}" + (f": {reason}" if reason else "."))


def _as_lines(api: ApiClient, job_id: str, give_up_after_s: float) -> None:
    """One JSON object per event."""
    for event in follow_job(api, job_id, give_up_after_s=give_up_after_s, on_trouble=_whisper):
        typer.echo(json.dumps(event, ensure_ascii=False))


def _on_terminal(api: ApiClient, job_id: str, give_up_after_s: float) -> None:
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console,
        disable=not sys.stdout.isatty(),
        transient=True,
    )
    with progress:
        task = progress.add_task(job_id, total=None, figures="")
        for event in follow_job(api, job_id, give_up_after_s=give_up_after_s, on_trouble=_whisper):
            data: dict[str, Any] = event["data"]
            if event["type"] == "metrics":
                progress.update(
                    task, completed=data.get("step"), total=data.get("total_steps"), figures=figures_of(data)
                )
            if event["type"] != "metrics" or progress.disable:
                style = _COLOURS.get(event["level"], "")
                console.print(Text(f"{moment(event['at'])}  {event['message']}", style=style))


def figures_of(data: dict[str, Any]) -> str:
    """What a metrics event measured, beside its step."""
    told = [f"{name} {data[name]:.4g}" for name in ("loss", "eval_loss") if name in data]
    seconds = data.get("seconds_left")
    return "  ".join([*told, *([f"{seconds:.0f} s left"] if seconds is not None else [])])


def _whisper(trouble: str) -> None:
    typer.echo(f"{trouble} Trying again…", err=True)
