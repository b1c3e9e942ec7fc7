"""`FIELD=VALUE` arguments and what becomes of them in a request's body."""

import json
from typing import Annotated, Any

import typer

from services.command_line.errors import BadInput

SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A field of the job: `hyperparameters.max_steps=60`."),
]


def pairs(given: list[str] | None, *, option: str) -> list[tuple[str, str]]:
    """`FIELD=VALUE` arguments, taken apart. Raises BadInput for others."""
    parted = [(text, *text.partition("=")) for text in given or ()]
    for text, field, equals, _ in parted:
        if not field or not equals:
            raise BadInput(f"{option} {text}: write it as FIELD=VALUE.")
    return [(field, value) for _, field, _, value in parted]


def put(body: dict[str, Any], field: str, value: object) -> None:
    """Set `a.b` of a nested object."""
    *parents, last = field.split(".")
    for name in parents:
        body = body.setdefault(name, {})
        if not isinstance(body, dict):
            raise BadInput(f"{field}: {name} is a value and has no fields.")
    body[last] = value


def value_of(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
