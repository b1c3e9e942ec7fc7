"""What a `model` of the OpenAI API stands for (docs/decisions/0011). Pure.

adaptive-moe        the active release decides token by token
release-7           that release decides, active or not
<base>              the base model alone
<base>:<expert>     one expert, newest version; its bare name does as well, as with vLLM
ft:<base>:<expert>:<job>                what a job has made of an expert, also when there are newer versions
ft:<base>:<expert>:<job>:ckpt-step-<N>  an earlier state of the same training
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from services.router_service.generation_request import Speakers
from services.router_service.schemas.openai_requests import ACTIVE_MODEL
from services.router_service.schemas.registry import release_number
from services.shared.errors import NotFound
from services.shared.vocabulary import BASE

NAMELESS: Final = frozenset({"tgi", "dummy"})
"""What huggingface_hub sends in place of a model when it was given an address."""

FINE_TUNED: Final = "ft:"
_LONGEST_SHOWN: Final = 80
_JOB_CHARACTERS: Final = 12
"""Of a job's 32: enough to tell the jobs of one expert apart."""
_FINE_TUNED_NAME: Final = re.compile(
    r"(?P<expert>[a-z0-9_-]{1,64}):(?P<job>[0-9a-f]{12})(?::ckpt-step-(?P<step>[0-9]{1,12}))?"
)


@dataclass(frozen=True)
class FineTunedName:
    """What a name beginning with `ft:` says: an expert, the first characters of a job's id, a checkpoint's step."""

    expert: str
    job: str
    step: int | None


def fine_tuned_model(base: str, expert: str, job_id: str, *, step: int | None = None) -> str:
    """What a job has made, or a checkpoint of it, as a model."""
    name = f"{FINE_TUNED}{base}:{expert}:{job_id.removeprefix('job-')[:_JOB_CHARACTERS]}"
    return name if step is None else f"{name}:ckpt-step-{step}"


def read_fine_tuned(model: str, *, base: str) -> FineTunedName:
    """The parts of such a name; NotFound for one of another base model, or of none."""
    prefix = f"{FINE_TUNED}{base}:"
    match = _FINE_TUNED_NAME.fullmatch(model.removeprefix(prefix))
    if match is None or not model.startswith(prefix):
        raise unknown_model(model)
    return FineTunedName(match["expert"], match["job"], int(match["step"]) if match["step"] else None)


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
