"""What a `model` of the OpenAI API stands for (docs/decisions/0011). Pure.

adaptive-moe        the active release decides token by token
release-7           that release decides, active or not
<base>              the base model alone
<base>:<expert>     one expert, newest version; its bare name does as well, as with vLLM
"""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Final

from services.router_service.generation_request import Speakers
from services.router_service.schemas.openai_requests import ACTIVE_MODEL
from services.router_service.schemas.registry import release_number
from services.shared.errors import NotFound
from services.shared.vocabulary import BASE

NAMELESS: Final = frozenset({"tgi", "dummy"})
"""What huggingface_hub sends in place of a model when it was given an address."""

_LONGEST_SHOWN: Final = 80


def expert_model(base: str, expert: str) -> str:
    """An expert's name as a model."""
    return f"{base}:{expert}"


def speakers_of(model: str, *, base: str, registered: Collection[str]) -> Speakers:
    """Who speaks when `model` is asked for; NotFound says what there is. Whether a release exists is seen later."""
    if model == ACTIVE_MODEL or model in NAMELESS:
        return Speakers()
    if model in (base, BASE):
        return Speakers(weights={BASE: 1.0})
    number = release_number(model) if model.startswith("release-") else 0
    if number:
        return Speakers(release=number)
    expert = model.removeprefix(f"{base}:")
    if expert in registered:
        return Speakers(weights={expert: 1.0})
    raise unknown_model(model, [ACTIVE_MODEL, base, *(expert_model(base, name) for name in registered)])


def unknown_model(model: str, known: Collection[str] = ()) -> NotFound:
    """The error for a name that stands for nothing, with names that may have been meant."""
    close = get_close_matches(model[:_LONGEST_SHOWN], known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "GET /v1/models lists those that do."
    return NotFound(
        f"The model {model[:_LONGEST_SHOWN]!r} does not exist. {hint}", param="model", code="model_not_found"
    )
