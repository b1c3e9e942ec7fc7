"""`adaptive-moe gaps …`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from services.command_line.completion import complete_gaps
from services.command_line.connection import AfterOption, JsonOption, LimitOption, UrlOption, connected, listing
from services.command_line.fields import SettingsOption, pairs, put, value_of
from services.command_line.file_commands import send_file
from services.command_line.output import moment, print_fields, print_json, print_page
from services.command_line.submitted_job import tell_submitted

gaps_app = typer.Typer(no_args_is_help=True, help="What the mixture is asked for and cannot answer well.")

GapArgument = Annotated[str, typer.Argument(help="Id of a gap.", autocompletion=complete_gaps)]


@gaps_app.command("list")
def list_gaps(
    *,
    status: Annotated[str | None, typer.Option(help="Only these: open, dismissed, merged or closed.")] = None,
    limit: LimitOption = 20,
    after: AfterOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List gaps, those met last first."""
    with connected(url) as api:
        answer, gaps = listing(api, "/gaps", status=status, limit=limit, after=after)
        if as_json:
            print_json(answer)
            return
        rows = [
            (
                gap["id"],
                gap["status"],
                gap["num_prompts"],
                gap["trend"],
                gap["domain"],
                gap["expert_name"],
                ", ".join(gap["keywords"][:5]),
                moment(gap["last_seen_at"]),
            )
            for gap in gaps
        ]
        print_page(answer, ("id", "status", "prompts", "trend", "domain", "expert", "keywords", "last seen"), rows)


@gaps_app.command()
def show(gap_id: GapArgument, *, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a gap: typical prompts, measured losses, and the data that an expert for it would need."""
    with connected(url) as api:
        _print_gap(api.get(f"/gaps/{gap_id}"), as_json=as_json)


@gaps_app.command()
def dismiss(gap_id: GapArgument, *, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Say that nothing is to be done about a gap; it does not come back."""
    with connected(url) as api:
        _print_gap(api.post(f"/gaps/{gap_id}/dismiss"), as_json=as_json)


@gaps_app.command()
def merge(
    gap_id: GapArgument,
    into: Annotated[str, typer.Argument(help="The gap that takes its requests.", autocompletion=complete_gaps)],
    *,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give the requests of a gap, now and in later analyses, to another one."""
    with connected(url) as api:
        _print_gap(api.post(f"/gaps/{gap_id}/merge", {"into": into}), as_json=as_json)


@gaps_app.command()
def analyse(
    *,
    settings: SettingsOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it to its end.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for gaps now; prints the job's id. A worker does so by itself every now and then."""
    with connected(url) as api:
        body: dict[str, Any] = {"kind": "gap_analysis"}
        for field, value in pairs(settings, option="--set"):
            put(body, field, value_of(value))
        tell_submitted(api, api.post("/jobs", body), watch=watch, as_json=as_json)


@gaps_app.command()
def expert(  # noqa: PLR0913 - ways to say what the expert is made of
    gap_id: GapArgument,
    *,
    teacher: Annotated[
        str | None, typer.Option(help="Who writes the examples: of the settings, or demo:chess_notation and the like.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Instead: a file of examples. May be given several times.")
    ] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="Wait with the training until the job is resumed.")
    ] = False,
    settings: SettingsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what it would do and take.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it to its end.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an expert for a gap, and release it if it helps and harms nobody; prints the job's id."""
    with connected(url) as api:
        body: dict[str, Any] = {"teacher": teacher, "approval": approve, "dry_run": dry_run}
        if data:
            body["training_files"] = [send_file(api, path, purpose="fine-tune", quiet=as_json)["id"] for path in data]
        for field, value in pairs(settings, option="--set"):
            put(body, field, value_of(value))
        tell_submitted(api, api.post(f"/gaps/{gap_id}/expert", body), watch=watch, as_json=as_json)


def _print_gap(gap: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(gap)
        return
    report = gap.get("report", {})
    print_fields(
        {
            "id": gap["id"],
            "status": gap["status"],
            "merged into": gap["merged_into"],
            "closed by": (gap["closed_by"] or {}).get("job"),
            "follows": gap["follows"],
            "domain": gap["domain"],
            "keywords": ", ".join(gap["keywords"]),
            "prompts": gap["num_prompts"],
            "trend": gap["trend"],
            "release": gap["release"],
            "expert": gap["expert_name"],
            "last seen": moment(gap["last_seen_at"]),
            "nearest expert": report.get("nearest_expert"),
            "losses": report.get("losses"),
            "data wanted": report.get("data_request"),
        }
    )
    for prompt in report.get("typical_prompts", []):
        typer.echo(f"\n{prompt}")
