"""Which documents a calibration reads, and where each is cut."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.base_row import LONGEST_TEXT, sample_base_text
from services.shared.schemas.calibration import CalibrationJobSpec
from services.shared.tokenizer import Tokenizer
from services.shared.training_text import Example
from services.trainer_worker.calibration.prompts import CutText, Prompts

LEAST_PROMPT: Final = 4
LEAST_CONTINUATION: Final = 4
_BASE_TEXT_SEED: Final = 1
"""Not that of the text that routers' base rows are made of."""


def draw_prompts(
    examples: Mapping[int, Sequence[Example]], base: LoadedBase, spec: CalibrationJobSpec, *, num_experts: int
) -> Prompts:
    """Documents of every domain, by the columns of their experts, and what the base model writes by itself, which it
    knows without any expert. Raises InvalidDataset where nothing is long enough."""
    texts: dict[int, Sequence[CutText]] = {
        column: _cut_examples(several, base, spec) for column, several in examples.items()
    }
    texts[num_experts] = _base_texts(base, spec)
    return Prompts.of(texts)


def _cut_examples(examples: Sequence[Example], base: LoadedBase, spec: CalibrationJobSpec) -> list[CutText]:
    """At most `max_documents` of them. An example that says where its answer begins is cut there."""
    rng = np.random.default_rng(spec.seed)
    drawn: list[CutText] = []
    for index in rng.permutation(len(examples)).tolist():
        cut = _cut_example(examples[index], base, spec, rng)
        if cut is not None:
            drawn.append(cut)
        if len(drawn) == spec.max_documents:
            break
    return drawn


def _cut_example(
    example: Example, base: LoadedBase, spec: CalibrationJobSpec, rng: np.random.Generator
) -> CutText | None:
    token_ids = base.tokenizer.encode(example.text)
    if not example.completions:
        return _cut_anywhere(token_ids, base, spec, rng)
    cut = _num_tokens(example.text[: example.completions[0][0]], base.tokenizer)
    token_ids = token_ids[: _longest(base, spec)]
    if cut < LEAST_PROMPT or len(token_ids) - cut < LEAST_CONTINUATION:
        return None
    return CutText(tuple(token_ids), cut)


def _cut_anywhere(
    token_ids: Sequence[int], base: LoadedBase, spec: CalibrationJobSpec, rng: np.random.Generator
) -> CutText | None:
    """The prompt's length is drawn between the spec's two, evenly on a logarithmic scale; at most half the text."""
    token_ids = tuple(token_ids[: _longest(base, spec)])
    shortest, longest = spec.prompt_tokens
    longest = min(longest, len(token_ids) // 2)
    if longest < LEAST_PROMPT:
        return None
    length = np.exp(rng.uniform(np.log(min(shortest, longest)), np.log(longest + 1)))
    return CutText(token_ids, int(length))


def _base_texts(base: LoadedBase, spec: CalibrationJobSpec) -> list[CutText]:
    streams = sample_base_text(
        base.model,
        base.tokenizer,
        num_tokens=spec.max_documents * LONGEST_TEXT,
        seed=_BASE_TEXT_SEED + spec.seed,
    )
    rng = np.random.default_rng(spec.seed)
    cut = [_cut_anywhere(stream, base, spec, rng) for stream in streams[: spec.max_documents]]
    return [text for text in cut if text is not None]


def _num_tokens(text: str, tokenizer: Tokenizer) -> int:
    return len(tokenizer.encode(text))


def _longest(base: LoadedBase, spec: CalibrationJobSpec) -> int:
    return min(spec.max_tokens, base.max_context)
