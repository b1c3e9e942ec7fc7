"""An answer as plain text, for clients that show what comes: `Accept: text/plain`, named first."""

from collections.abc import Sequence
from typing import Final

from fastapi import Request
from fastapi.responses import PlainTextResponse

from services.router_service.schemas.generation import ExpertShare, GenerateParameters, GenerateResponse

_LEAST_PERCENT: Final = 1


def wants_plain_text(request: Request) -> bool:
    """Whether plain text is what the client names first; many that want JSON name it too."""
    first, _, _ = request.headers.get("accept", "").partition(",")
    return first.partition(";")[0].strip().lower() == "text/plain"


def plain_text(answer: GenerateResponse, parameters: GenerateParameters, headers: dict[str, str]) -> PlainTextResponse:
    """The text; before it, a line that says who wrote it, if the request asks for an attribution."""
    asked = parameters.explain or "attribution" in parameters.model_fields_set
    lines = [attribution_line(answer.routing.attribution)] if asked else []
    return PlainTextResponse("\n".join([*lines, answer.generated_text]), headers=headers)


def attribution_line(shares: Sequence[ExpertShare]) -> str:
    """`[experts: math 82 % (+1.31 nats), base 18 %]`: shares, and where they are known effects per token. Pure."""
    spoke = [part for part in shares if part.share > 0.0]
    return f"[experts: {', '.join(map(_part, spoke)) or 'none'}]"


def _part(part: ExpertShare) -> str:
    percent = round(100 * part.share)
    shown = f"{percent}" if percent >= _LEAST_PERCENT else f"<{_LEAST_PERCENT}"
    effect = "" if part.effect is None else f" ({part.effect:+.2f} nats)"
    return f"{part.expert} {shown} %{effect}"
