"""`adaptive-moe traces …`."""

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from services.command_line.completion import complete_traces
from services.command_line.connection import AfterOption, JsonOption, LimitOption, UrlOption, connected, listing
from services.command_line.download import download
from services.command_line.errors import BadInput
from services.command_line.fields import pairs, put, value_of
from services.command_line.file_commands import send_files
from services.command_line.job_watch import GIVE_UP_S, watch_job
from services.command_line.output import moment, print_fields, print_json, print_page
from services.command_line.recording_archive import packed

traces_app = typer.Typer(no_args_is_help=True, help="Which experts were chosen at every token, and what that says.")

TraceArgument = Annotated[str, typer.Argument(help="Id of a trace.", autocompletion=complete_traces)]
_SHOWN: Final = {
    "Cramér's V": "independence.cramers_v",
    "MI (bits)": "mutual_information.bits",
    "entropy (bits)": "entropy.bits",
    "repetition": "stickiness.repetition",
    "popularity": "stickiness.popularity",
    "excess": "stickiness.excess",
    "max/mean load": "load.max_over_mean",
}
"""Columns of the overview, and the numbers in them."""


@traces_app.command("import")
def import_trace(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="tensor_trace.bin, token-NNNNN.json, moe_routes.jsonl and the like, their archives, or whole folders."
        ),
    ],
    *,
    name: Annotated[str | None, typer.Option(help="Of the trace. Default: the first file's.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="What the files do not say: domain=math, num_experts=64, top_k=8."
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it to its end.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a trace of recordings that others made, and analyse it; prints the trace's id."""
    with connected(url) as api:
        chosen: dict[str, Any] = {}
        for field, value in pairs(options, option="--set"):
            put(chosen, field, value_of(value))
        fields = {"name": name or paths[0].resolve().name, "options": json.dumps(chosen)}
        with packed(paths) as files:
            parts = [("files", path) for path in files]
            answer = send_files(api, "/traces", fields=fields, paths=parts, quiet=as_json)
        trace = answer["trace"]["id"]
        if watch:
            watch_job(api, answer["job"]["id"], as_json=as_json, give_up_after_s=GIVE_UP_S)
        if not as_json:
            typer.echo(trace)
        elif not watch:
            print_json(answer)


@traces_app.command("list")
def list_traces(
    *,
    status: Annotated[str | None, typer.Option(help="Only these: importing, ready or failed.")] = None,
    limit: LimitOption = 20,
    after: AfterOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List traces, the newest first."""
    with connected(url) as api:
        answer, traces = listing(api, "/traces", status=status, limit=limit, after=after)
        if as_json:
            print_json(answer)
            return
        rows = [_row(trace) for trace in traces]
        columns = ("id", "name", "status", "source", "sequences", "tokens", "layers", "warnings", "created")
        print_page(answer, columns, rows)


@traces_app.command()
def show(trace_id: TraceArgument, *, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a trace, and what is wrong with it."""
    with connected(url) as api:
        trace = api.get(f"/traces/{trace_id}")
        if as_json:
            print_json(trace)
            return
        description = trace["description"] or {}
        layers = description.get("layers", [])
        print_fields(
            {
                "id": trace["id"],
                "name": trace["name"],
                "status": trace["status"],
                "error": (trace["error"] or {}).get("message"),
                "source": trace["source"],
                "model": description.get("model"),
                "domains": ", ".join(description.get("domains", [])),
                "sequences": description.get("num_sequences"),
                "tokens": description.get("num_tokens"),
                "layers": len(layers),
                "experts": ", ".join(sorted({f"{each['num_experts']} (top {each['top_k']})" for each in layers})),
                "job": trace["job"],
                "created": moment(trace["created_at"]),
            }
        )
        for finding in description.get("findings", []):
            count = f" ({finding['count']:,})" if finding["count"] is not None else ""
            typer.echo(f"\n{finding['severity']}: {finding['code']}{count}\n  {finding['message']}")


@traces_app.command()
def analyse(  # noqa: PLR0913
    trace_id: Annotated[
        str | None, typer.Argument(help="Id of a trace. Default: the routing log.", autocompletion=complete_traces)
    ] = None,
    figure: Annotated[str | None, typer.Argument(help="One figure as JSON, such as transitions.")] = None,
    *,
    layer: Annotated[int | None, typer.Option(help="Of this layer.")] = None,
    phase: Annotated[str, typer.Option(help="Which tokens: all, prompt or generated.")] = "all",
    final: Annotated[str | None, typer.Option(help="With saturation: the trace of the final checkpoint.")] = None,
    since: Annotated[str | None, typer.Option(help="Of the routing log: ISO 8601. Default: a day ago.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a trace says of the experts, layer by layer; without one, what the routing log does."""
    if trace_id is not None and since is not None:
        raise typer.BadParameter("--since is of the routing log, which is analysed when no trace is named.")
    with connected(url) as api:
        if trace_id is not None and figure is not None:
            print_json(api.get(f"/traces/{trace_id}/analysis/{figure}", layer=layer, phase=phase, final=final))
            return
        answer = api.get("/analysis", since=since) if trace_id is None else api.get(f"/traces/{trace_id}/analysis")
        if as_json:
            print_json(answer)
            return
        _print_overview(answer["overview"], phase)


@traces_app.command()
def report(
    trace_id: TraceArgument,
    *,
    out: Annotated[Path | None, typer.Option(help="File to write. Default: its id with .html.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown, to the terminal.")] = False,
    url: UrlOption = None,
) -> None:
    """Write a trace's report, with figures, as one HTML file."""
    with connected(url) as api:
        if markdown:
            with api.stream("GET", f"/traces/{trace_id}/report.md") as response:
                typer.echo(response.read().decode())
            return
        target = out or Path(f"{trace_id}.html")
        download(api, f"/traces/{trace_id}/report", target, quiet=False)
        typer.echo(str(target))


@traces_app.command()
def delete(trace_id: TraceArgument, *, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Forget a trace, its analysis and its recordings. Refused while its job is at work."""
    with connected(url) as api:
        answer = api.delete(f"/traces/{trace_id}")
        if as_json:
            print_json(answer)
        else:
            typer.echo(f"{trace_id} is deleted.")


def _row(trace: dict[str, Any]) -> tuple[object, ...]:
    description = trace["description"] or {}
    return (
        trace["id"],
        trace["name"],
        trace["status"],
        trace["source"],
        description.get("num_sequences"),
        description.get("num_tokens"),
        len(description.get("layers", ())) or None,
        len(_serious(description)) or None,
        moment(trace["created_at"]),
    )


def _serious(description: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in description.get("findings", ()) if finding["severity"] != "info"]


def _print_overview(overview: dict[str, Any], phase: str) -> None:
    part = overview["parts"].get(phase)
    for skipped in overview["skipped"]:
        typer.echo(f"Layer {skipped['layer']} has no figures: {skipped['reason']}", err=True)
    if part is None:
        raise BadInput(f"No figures of {phase} tokens; there are those of: {', '.join(overview['parts']) or 'none'}.")
    numbers = {
        title: {each["layer"]: each["estimate"] for each in part["over_layers"].get(name, ())}
        for title, name in _SHOWN.items()
    }
    print_fields(
        {
            "domains": ", ".join(overview["description"]["domains"]),
            "sequences": part["num_sequences"],
            "tokens": part["num_tokens"],
        }
    )
    rows = [(layer, *(_told(numbers[title].get(layer)) for title in _SHOWN)) for layer in overview["layers"]]
    print_page({"has_more": False}, ("layer", *_SHOWN), rows)
    typer.echo("value [95 % interval], * where q < 0.05 over the layers", err=True)


def _told(estimate: dict[str, Any] | None) -> str | None:
    if estimate is None or estimate["value"] is None:
        return None
    interval = f" [{estimate['low']:.3g}, {estimate['high']:.3g}]" if estimate["low"] is not None else ""
    star = "*" if estimate["q_value"] is not None and estimate["q_value"] < 0.05 else ""
    return f"{estimate['value']:.3g}{star}{interval}"
