"""`adaptive-moe releases …`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from services.command_line.api_client import ApiClient
from services.command_line.completion import complete_experts, complete_releases
from services.command_line.connection import AfterOption, JsonOption, LimitOption, UrlOption, connected, listing
from services.command_line.download import download
from services.command_line.file_commands import send_files
from services.command_line.output import moment, print_fields, print_json, print_page, short
from services.command_line.release_comparison import comparison_lines

releases_app = typer.Typer(no_args_is_help=True, help="What is served together: made, activated, taken back, moved.")

ReleaseArgument = Annotated[
    str, typer.Argument(help="Id of a release, like release-7.", autocompletion=complete_releases)
]
IfActiveOption = Annotated[
    str | None, typer.Option(help="Only if this release is the active one now.", autocompletion=complete_releases)
]
ActivateOption = Annotated[bool, typer.Option("--activate", help="Activate it too.")]


@releases_app.command("list")
def list_releases(
    *, limit: LimitOption = 20, after: AfterOption = None, url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """List releases, the newest first."""
    with connected(url) as api:
        answer, releases = listing(api, "/releases", limit=limit, after=after)
        if as_json:
            print_json(answer)
            return
        rows = [
            (
                release["id"],
                release["status"],
                short(release["digest"]),
                len(release["experts"]),
                release["router_kind"],
                moment(release["created_at"]),
                release["note"],
            )
            for release in releases
        ]
        print_page(answer, ("id", "status", "digest", "experts", "router", "created", "note"), rows)


@releases_app.command()
def show(release_id: ReleaseArgument, *, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a release: its experts, router, graph and evaluation."""
    with connected(url) as api:
        _print_release(api.get(f"/releases/{release_id}"), as_json=as_json)


@releases_app.command()
def create(  # noqa: PLR0913 - the fields of a release
    experts: Annotated[
        list[str],
        typer.Argument(help="Experts in the gate's order: `math` or `math@2`.", autocompletion=complete_experts),
    ],
    *,
    router: Annotated[str | None, typer.Option(help="Digest of a router. Default: the active release's.")] = None,
    router_job: Annotated[str | None, typer.Option(help="Or the router that this job made.")] = None,
    graph: Annotated[str | None, typer.Option(help="Digest of a cooperation graph. Default: none.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Digest of a calibration. Default: the active release's, with its router.")
    ] = None,
    note: Annotated[str, typer.Option(help="A word about it.")] = "",
    activate: ActivateOption = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a release; it is staged until it is activated."""
    with connected(url) as api:
        given = {
            "experts": experts,
            "router": router,
            "router_job": router_job,
            "graph": graph,
            "calibration": calibration,
            "note": note,
        }
        release = api.post("/releases", {field: value for field, value in given.items() if value is not None})
        _print_release(_activated(api, release, activate=activate), as_json=as_json)


@releases_app.command()
def activate(
    release_id: ReleaseArgument,
    *,
    if_active: IfActiveOption = None,
    force: Annotated[bool, typer.Option("--force", help="Even if it is worse than the active one.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve new requests with a release; those in flight end on theirs."""
    with connected(url) as api:
        body = {"force": force} | _if_active(if_active)
        _print_release(api.post(f"/releases/{release_id}/activate", body), as_json=as_json)


@releases_app.command()
def rollback(*, if_active: IfActiveOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Go back to the release that was active before; again: to the one before that."""
    with connected(url) as api:
        _print_release(api.post("/releases/rollback", _if_active(if_active)), as_json=as_json)


@releases_app.command()
def compare(
    release_id: ReleaseArgument, other_id: ReleaseArgument, *, url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """Say what differs from the first release to the second."""
    with connected(url) as api:
        comparison = api.get(f"/releases/{release_id}/compare/{other_id}")
        if as_json:
            print_json(comparison)
        else:
            for line in comparison_lines(comparison):
                typer.echo(line)


@releases_app.command("export")
def export_release(
    release_id: ReleaseArgument,
    *,
    to: Annotated[Path | None, typer.Option("--out", help="The archive to write. Default: RELEASE.tar here.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a release with everything that it takes into one archive."""
    path = to or Path(f"{release_id}.tar")
    with connected(url) as api:
        num_bytes = download(api, f"/releases/{release_id}/export", path, quiet=as_json)
        if as_json:
            print_json({"id": release_id, "path": str(path), "num_bytes": num_bytes})
        else:
            typer.echo(f"Wrote {release_id} to {path}")


@releases_app.command("import")
def import_release(
    path: Annotated[Path, typer.Argument(help="An archive that `adaptive-moe releases export` wrote.")],
    *,
    activate: ActivateOption = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take in a release from an archive, whole or not at all; it is staged until it is activated."""
    with connected(url) as api:
        release = send_files(api, "/releases/import", fields={}, paths=[("archive", path)], quiet=as_json)
        _print_release(_activated(api, release, activate=activate), as_json=as_json)


def _activated(api: ApiClient, release: dict[str, Any], *, activate: bool) -> dict[str, Any]:
    if not activate:
        return release
    activated: dict[str, Any] = api.post(f"/releases/{release['id']}/activate")
    return activated


def _if_active(release_id: str | None) -> dict[str, str]:
    return {} if release_id is None else {"if_active": release_id}


def _print_release(release: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(release)
        return
    print_fields(
        {
            "id": release["id"],
            "status": release["status"],
            "digest": release["digest"],
            "base model": release["base_model"],
            "router": f"{release['router_kind']} {short(release['router_digest'])}",
            "graph": short(release["graph_digest"]),
            "calibration": short(release["calibration_digest"]),
            "experts": ", ".join(f"{expert['name']}@{expert['version']}" for expert in release["experts"]),
            "losses": (release["evaluation"] or {}).get("losses"),
            "note": release["note"],
            "created": moment(release["created_at"]),
            "activated": moment(release["activated_at"]),
        }
    )
