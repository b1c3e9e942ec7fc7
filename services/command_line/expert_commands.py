"""`adaptive-moe experts …`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from services.command_line.completion import complete_experts
from services.command_line.connection import AfterOption, JsonOption, LimitOption, UrlOption, connected, listing
from services.command_line.file_commands import send_files
from services.command_line.output import moment, print_fields, print_json, print_page, short, size

experts_app = typer.Typer(no_args_is_help=True, help="What is registered, and how adapters get there.")

ExpertArgument = Annotated[str, typer.Argument(help="Name of an expert.", autocompletion=complete_experts)]


@experts_app.command("list")
def list_experts(
    *,
    retired: Annotated[bool, typer.Option("--retired", help="Also those that are retired.")] = False,
    limit: LimitOption = 100,
    after: AfterOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List experts by name."""
    with connected(url) as api:
        answer, experts = listing(api, "/experts", retired=retired, limit=limit, after=after)
        if as_json:
            print_json(answer)
            return
        columns = ("name", "latest", "active", "pinned", "retired", "domain", "description")
        keys = ("name", "latest_version", "active_version", "pinned", "retired", "domain", "description")
        print_page(answer, columns, [[expert[key] for key in keys] for expert in experts])


@experts_app.command()
def show(name: ExpertArgument, *, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show an expert with its versions."""
    with connected(url) as api:
        _print_expert(api.get(f"/experts/{name}"), as_json=as_json)


@experts_app.command("import")
def import_expert(  # noqa: PLR0913 - the fields of the form
    name: Annotated[str, typer.Argument(help="Its name here: lower case, digits, `_` and `-`.")],
    folder: Annotated[
        Path, typer.Argument(help="Folder with adapter_config.json and adapter_model.safetensors, as PEFT saves them.")
    ],
    *,
    exemplars: Annotated[
        Path | None, typer.Option(help="Texts of its domain: without them it can be named, but not be routed to.")
    ] = None,
    domain: Annotated[str | None, typer.Option()] = None,
    description: Annotated[str | None, typer.Option()] = None,
    add_to_release: Annotated[bool, typer.Option("--add-to-release", help="Make a release with it.")] = False,
    activate: Annotated[bool, typer.Option("--activate", help="Make that release and activate it.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import a PEFT LoRA adapter as the next version of an expert."""
    with connected(url) as api:
        paths = [("files", folder / file) for file in ("adapter_config.json", "adapter_model.safetensors")]
        if exemplars is not None:
            paths.append(("exemplars", exemplars))
        texts = {"name": name, "domain": domain, "description": description}
        fields = {field: text for field, text in texts.items() if text is not None}
        fields |= {"add_to_release": str(add_to_release or activate).lower(), "activate": str(activate).lower()}
        expert = send_files(api, "/experts", fields=fields, paths=paths, quiet=as_json)
        _print_expert(expert, as_json=as_json)


@experts_app.command()
def retire(name: ExpertArgument, *, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Take an expert out of use; its versions are kept. Refused while the active release needs it."""
    with connected(url) as api:
        answer = api.delete(f"/experts/{name}")
        if as_json:
            print_json(answer)
        else:
            typer.echo(f"{name} is retired.")


def _print_expert(expert: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(expert)
        return
    fields = ("name", "domain", "description", "retired", "pinned", "active_version", "release")
    print_fields({field.replace("_", " "): expert.get(field) or None for field in fields})
    columns = ("version", "source", "rank", "size", "routable", "created", "digest")
    rows = [
        (
            version["version"],
            version["source"],
            version["rank"],
            size(version["num_bytes"]),
            version["has_evidence"],
            moment(version["created_at"]),
            short(version["digest"]),
        )
        for version in expert["versions"]
    ]
    print_page({"has_more": False}, columns, rows)
