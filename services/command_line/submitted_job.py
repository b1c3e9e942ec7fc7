"""What is said of a job that was just submitted, or would be."""

from typing import Any

import typer

from services.command_line.api_client import ApiClient
from services.command_line.job_watch import GIVE_UP_S, watch_job
from services.command_line.output import print_fields, print_json


def tell_submitted(api: ApiClient, answer: dict[str, Any], *, watch: bool, as_json: bool) -> None:
    """Its id, all of it as JSON, its history to its end, or what a dry run found."""
    is_dry_run = "id" not in answer
    if watch and not is_dry_run:
        watch_job(api, answer["id"], as_json=as_json, give_up_after_s=GIVE_UP_S)
    elif as_json:
        print_json(answer)
    elif is_dry_run:
        print_fields(answer)
    else:
        typer.echo(answer["id"])
