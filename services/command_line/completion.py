"""What the shell may offer for an argument: asked of the running service, and nothing where that does not answer."""

from collections.abc import Iterator

import typer

from services.command_line.api_client import ApiClient
from services.command_line.connection import local_url
from services.command_line.errors import CommandError

Offer = tuple[str, str]
"""A value, and a word about it."""


def complete_jobs(context: typer.Context, incomplete: str) -> list[Offer]:
    """Ids of the newest jobs."""
    return _offer(context, "/jobs?limit=100", "status", incomplete)


def complete_experts(context: typer.Context, incomplete: str) -> list[Offer]:
    """Names of experts."""
    return _offer(context, "/experts?limit=1000", "domain", incomplete)


def complete_releases(context: typer.Context, incomplete: str) -> list[Offer]:
    """Ids of the newest releases."""
    return _offer(context, "/releases?limit=100", "status", incomplete)


def complete_gaps(context: typer.Context, incomplete: str) -> list[Offer]:
    """Ids of the gaps that were met last."""
    return _offer(context, "/gaps?limit=100", "expert_name", incomplete)


def complete_traces(context: typer.Context, incomplete: str) -> list[Offer]:
    """Ids of the newest traces."""
    return _offer(context, "/traces?limit=100", "name", incomplete)


def _offer(context: typer.Context, path: str, word: str, incomplete: str) -> list[Offer]:
    try:
        return [offer for offer in _known(context, path, word) if offer[0].startswith(incomplete)]
    except (CommandError, KeyError, TypeError):
        return []


def _known(context: typer.Context, path: str, word: str) -> Iterator[Offer]:
    with ApiClient(context.params.get("url") or local_url()) as api:
        for item in api.get(path)["data"]:
            yield item["id"], str(item[word] or "")
