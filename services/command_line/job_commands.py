"""`adaptive-moe jobs …`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from services.command_line.completion import complete_jobs
from services.command_line.connection import AfterOption, JsonOption, LimitOption, UrlOption, connected, listing
from services.command_line.download import download_artifacts
from services.command_line.errors import BadInput
from services.command_line.fields import SettingsOption, pairs, put, value_of
from services.command_line.file_commands import send_file
from services.command_line.job_watch import GIVE_UP_S, watch_job
from services.command_line.output import moment, print_fields, print_json, print_page, short, size
from services.command_line.submitted_job import tell_submitted

jobs_app = typer.Typer(no_args_is_help=True, help="Train experts, make routers, and see how far they are.")

JobArgument = Annotated[str, typer.Argument(help="Id of a job: see `jobs list`.", autocompletion=complete_jobs)]
_HELD: Final = ("validating", "running")
GiveUpOption = Annotated[float, typer.Option(min=0.0, help="Seconds without any answer after which to stop trying.")]


@jobs_app.command()
def submit(  # noqa: PLR0913 - ways to say what the job is
    spec: Annotated[
        str | None, typer.Argument(help="A JSON file with the job's specification, `-` for the standard input.")
    ] = None,
    *,
    settings: SettingsOption = None,
    uploads: Annotated[
        list[str] | None,
        typer.Option("--upload", metavar="FIELD=PATH", help="Upload a file and name it: `training_file=chess.jsonl`."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what it would do and take.")] = False,
    key: Annotated[str | None, typer.Option(help="A repeated submission with it finds its first job.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it to its end.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a job; prints its id."""
    with connected(url) as api:
        body = _specification(spec)
        for field, path in pairs(uploads, option="--upload"):
            put(body, field, send_file(api, Path(path), purpose="fine-tune", quiet=as_json)["id"])
        for field, value in pairs(settings, option="--set"):
            put(body, field, value_of(value))
        if dry_run:
            body["dry_run"] = True
        job = api.post("/jobs", body, headers={"idempotency-key": key} if key else None)
        tell_submitted(api, job, watch=watch, as_json=as_json)


@jobs_app.command("list")
def list_jobs(
    *,
    kind: Annotated[str | None, typer.Option(help="Only these.")] = None,
    status: Annotated[str | None, typer.Option(help="Only these.")] = None,
    limit: LimitOption = 20,
    after: AfterOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, the newest first."""
    with connected(url) as api:
        answer, jobs = listing(api, "/jobs", kind=kind, status=status, limit=limit, after=after)
        if as_json:
            print_json(answer)
            return
        rows = [
            (job["id"], job["kind"], job["spec"].get("name"), job["status"], _steps(job), moment(job["created_at"]))
            for job in jobs
        ]
        print_page(answer, ("id", "kind", "name", "status", "steps", "created"), rows)


@jobs_app.command()
def show(job_id: JobArgument, *, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show one job: its state, progress, result or reason for failing."""
    with connected(url) as api:
        _print_job(api.get(f"/jobs/{job_id}"), as_json=as_json)


@jobs_app.command()
def watch(
    job_id: JobArgument, *, give_up_after: GiveUpOption = GIVE_UP_S, url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """Follow a job to its end, through broken connections too. Exit code 1 unless it succeeds."""
    with connected(url) as api:
        watch_job(api, job_id, as_json=as_json, give_up_after_s=give_up_after)


@jobs_app.command()
def cancel(job_id: JobArgument, *, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Cancel a job; a running one stops within one step."""
    _change(url, job_id, "cancel", as_json=as_json)


@jobs_app.command()
def pause(job_id: JobArgument, *, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Pause a job; a running one keeps its state and frees its worker within one step."""
    _change(url, job_id, "pause", as_json=as_json)


@jobs_app.command()
def resume(job_id: JobArgument, *, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Queue a paused job again: it goes on exactly where it was."""
    _change(url, job_id, "resume", as_json=as_json)


@jobs_app.command()
def artifacts(
    job_id: JobArgument,
    *,
    folder: Annotated[Path | None, typer.Option("--out", help="Download them into this folder.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what a job has made, or download all of it."""
    with connected(url) as api:
        answer = api.get(f"/jobs/{job_id}/artifacts")
        if folder is not None:
            download_artifacts(api, job_id, folder, quiet=as_json)
        if as_json:
            print_json(answer)
        else:
            rows = [(entry["path"], size(entry["num_bytes"]), short(entry["sha256"])) for entry in answer["data"]]
            print_page(answer, ("path", "size", "digest"), rows)


@jobs_app.command()
def logs(
    job_id: JobArgument,
    *,
    max_bytes: Annotated[int, typer.Option(min=1024, help="Of the end of the log.")] = 256 * 1024,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a job's workers have logged."""
    with connected(url) as api, api.stream("GET", f"/jobs/{job_id}/logs?max_bytes={max_bytes}") as response:
        text = "".join(response.iter_text())
        if as_json:
            print_json({"id": job_id, "log": text})
        else:
            typer.echo(text, nl=False)


def _change(url: str | None, job_id: str, verb: str, *, as_json: bool) -> None:
    with connected(url) as api:
        _print_job(api.post(f"/jobs/{job_id}/{verb}"), as_json=as_json)


def _print_job(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    asked = [name for name in ("cancel", "pause") if job.get(f"{name}_requested") and job["status"] in _HELD]
    print_fields(
        {
            "id": job["id"],
            "kind": job["kind"],
            "name": job["spec"].get("name"),
            "status": job["status"] + "".join(f", to {verb}" for verb in asked),
            "phase": job["progress"]["phase"],
            "steps": _steps(job),
            "loss": job["progress"]["loss"],
            "seconds left": job["progress"]["seconds_left"],
            "attempt": job["attempt"] or None,
            "created": moment(job["created_at"]),
            "started": moment(job["started_at"]),
            "finished": moment(job["finished_at"]),
            "result": job["result"],
            "error": (job["error"] or {}).get("message"),
        }
    )


def _steps(job: dict[str, Any]) -> str:
    progress = job["progress"]
    return f"{progress['step']}/{progress['total_steps']}" if progress["total_steps"] else ""


def _specification(source: str | None) -> dict[str, Any]:
    if source is None:
        return {}
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        spec = json.loads(text)
    except (OSError, ValueError) as error:
        raise BadInput(f"{source} cannot be read as JSON: {error}") from error
    if not isinstance(spec, dict):
        raise BadInput(f"{source} is not a JSON object: a job's specification is one.")
    return spec
