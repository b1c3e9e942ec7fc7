"""`adaptive-moe generate`: an answer as it is written, and who wrote it."""

import json
import sys
from typing import Annotated, Any

import typer

from services.command_line.api_client import ApiClient
from services.command_line.completion import complete_experts
from services.command_line.connection import JsonOption, UrlOption, connected
from services.command_line.errors import Refused
from services.command_line.event_stream import read_events
from services.command_line.output import print_json


def generate(  # noqa: PLR0913 - what people change most
    prompt: Annotated[str, typer.Argument(help="The prompt; `-` for the standard input.")],
    *,
    expert: Annotated[
        str | None, typer.Option(help="One expert, or `base`, instead of the router.", autocompletion=complete_experts)
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="At most so many tokens.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Draw tokens at this temperature; without it: the likeliest.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; repeatable.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate text; says on the error stream which experts wrote it."""
    given = {
        "adapter_id": expert,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "do_sample": True if temperature is not None else None,
        "seed": seed,
        "stop": stop or None,
    }
    parameters = {name: value for name, value in given.items() if value is not None}
    body = {"inputs": sys.stdin.read() if prompt == "-" else prompt, "parameters": parameters}
    with connected(url) as api:
        if as_json:
            print_json(api.post("/generate", body))
            return
        routing = _write(api, body)
        shares = [f"{entry['expert']} {entry['share']:.0%}" for entry in routing["attribution"] if entry["num_tokens"]]
        typer.echo(f"[{routing['release'] or 'no release'}: {', '.join(shares)}]", err=True)


def _write(api: ApiClient, body: dict[str, Any]) -> dict[str, Any]:
    """Print the tokens as they come; who carried them is in the last event."""
    routing: dict[str, Any] = {}
    with api.stream("POST", "/generate_stream", body=body) as response:
        for event in read_events(response.iter_text()):
            told = json.loads(event.data)
            if "error" in told:
                typer.echo()
                raise Refused(str(told["error"]["message"]), status=500)
            if not told["token"]["special"]:
                typer.echo(told["token"]["text"], nl=False)
            routing = told.get("routing") or routing
    typer.echo()
    return routing
