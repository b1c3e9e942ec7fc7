"""The first step: examples from files or from a teacher, cleaned, judged by the base model, and split.

They become a folder of the job's artifacts: `train.jsonl`, `held_out.jsonl` and `report.json`, where everything that
was dropped is counted by reason.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from services.shared.errors import JobFailed
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.shared.tokenizer import load_tokenizer
from services.shared.training_plan import held_out_indices
from services.shared.training_text import Example, text_digest
from services.trainer_worker.expert_creation.cleaning import Cleaned, clean, prompt_of
from services.trainer_worker.expert_creation.evaluation_texts import evaluation_texts
from services.trainer_worker.expert_creation.generation import generate
from services.trainer_worker.expert_creation.kept_examples import read_kept, write_examples
from services.trainer_worker.expert_creation.near_duplicates import SIMILARITY
from services.trainer_worker.expert_creation.quality import Judged, without_outliers, without_repetitive
from services.trainer_worker.expert_creation.teacher import teacher_of
from services.trainer_worker.expert_creation.wanted import Wanted
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.training_files import examples_of

if TYPE_CHECKING:
    from services.shared.modeling.base_model import LoadedBase

_LEAST_EXAMPLES: Final = 20
_MOST_EXAMPLES: Final = 10_000
_SPARE: Final = 1.1
"""Of what a teacher is asked for, because some will not pass."""
_LEAST_PROMPTS: Final = 10
"""With fewer, prompts say nothing, and examples that share one are told apart all the same."""
LEAST_HELD_OUT: Final = 6
"""Fewer prove nothing: that all of five improve happens by chance more often than one time in twenty (two-sided)."""
_SEED: Final = 0
_GROUP: Final = "examples"


@dataclass
class _Tally:
    """What came, and what was dropped of it, by reason."""

    source: dict[str, Any]
    num_received: int
    dropped: Counter[str] = field(default_factory=Counter)

    def passed(self, judged: Cleaned | Judged) -> list[Example]:
        """Those that were kept; the others are counted."""
        self.dropped += judged.dropped
        return list(judged.kept)


@dataclass(frozen=True)
class PreparedData:
    """The folder of the examples."""

    folder: Path

    @property
    def train(self) -> list[Example]:
        """What is learned."""
        return read_kept(self.folder / "train.jsonl")

    @property
    def held_out(self) -> list[Example]:
        """What the expert is judged on."""
        return read_kept(self.folder / "held_out.jsonl")


def prepare(
    context: JobContext, spec: ExpertCreationJobSpec, wish: Wanted, base: "LoadedBase", data: PreparedData
) -> dict[str, Any]:
    """Write the folder and return its report. Raises JobFailed where too little is left, saying what became of it."""
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    evaluated = evaluation_texts(context, tokenizer)
    cleaning = partial(clean, evaluation_texts=[text for texts in evaluated.values() for text in texts])
    if spec.teacher is not None:
        examples, tally = _taught(context, spec, wish, cleaning)
    else:
        received = [one for file_id in spec.training_files for one in examples_of(context, file_id, tokenizer)]
        _refuse_too_many(received)
        tally = _Tally({"training_files": list(spec.training_files)}, len(received))
        examples = tally.passed(cleaning(received))
    context.enter("judging the examples")
    examples = tally.passed(without_repetitive(examples))
    losses_N, tokens_N = _base_losses(context, spec, base, examples)
    examples = tally.passed(without_outliers(examples, losses_N, tokens_N))
    if spec.teacher is not None:
        examples = examples[: wish.num_examples]
    _refuse_too_few(spec, wish, examples, tally)
    train, held_out = _split(examples, spec.held_out_fraction)
    report = {
        **tally.source,
        "num_received": tally.num_received,
        "dropped": dict(sorted(tally.dropped.items())),
        "num_kept": len(examples),
        "num_train": len(train),
        "num_held_out": len(held_out),
        "near_duplicate_similarity": SIMILARITY,
        "compared_with": {"files": list(evaluated), "num_texts": sum(map(len, evaluated.values()))},
        "base_loss": {f"p{share}": round(float(np.percentile(losses_N, share)), 4) for share in (1, 50, 99)},
    }
    _write(data.folder, train, held_out, report)
    return report


def _taught(
    context: JobContext, spec: ExpertCreationJobSpec, wish: Wanted, cleaning: Any
) -> tuple[list[Example], _Tally]:
    assert spec.teacher is not None
    generated = generate(
        teacher_of(spec.teacher, context.settings, should_stop=context.should_stop),
        wish.request,
        wanted=round(_SPARE * wish.num_examples),
        folder=context.folder.work / "answers",
        clean=cleaning,
        on_answer=lambda num: context.enter(f"asking {spec.teacher}: {num} of {wish.num_examples} examples"),
    )
    if generated.gave_up is not None:
        context.note(f"Going on with what there is: {generated.gave_up}", level="warn")
    source = {"teacher": spec.teacher, "num_answers": generated.num_answers, "request": wish.request.kind}
    tally = _Tally(source, generated.num_examples + generated.unreadable.total(), Counter(generated.unreadable))
    return tally.passed(generated.cleaned), tally


def _base_losses(
    context: JobContext, spec: ExpertCreationJobSpec, base: "LoadedBase", examples: Sequence[Example]
) -> tuple[Any, Any]:
    """Of every example, nats per token under the base model, and how many tokens."""
    from services.trainer_worker.expert_creation.documents import Documents
    from services.trainer_worker.expert_creation.reading import read_base

    if not examples:
        return np.zeros(1), np.zeros(0)
    documents = Documents.of({_GROUP: examples}, base, max_length=spec.hyperparameters.max_length)
    reading = read_base(base, documents, context.should_stop)
    return reading.losses(), reading.tokens_B


def _refuse_too_many(examples: Sequence[Example]) -> None:
    if len(examples) > _MOST_EXAMPLES:
        raise JobFailed(
            f"{len(examples):,} examples are more than the {_MOST_EXAMPLES:,} that are compared with each other here: "
            "upload fewer, or train with a job of kind expert and evaluate it yourself.",
            param="training_files",
            code="too_many_examples",
        )


def _refuse_too_few(spec: ExpertCreationJobSpec, wish: Wanted, examples: Sequence[Example], tally: _Tally) -> None:
    least = max(_LEAST_EXAMPLES, wish.num_examples // 2) if spec.teacher is not None else _LEAST_EXAMPLES
    if len(examples) >= least:
        return
    why = ", ".join(f"{num} {reason}" for reason, num in tally.dropped.most_common()) or "none was dropped"
    raise JobFailed(
        f"Of {tally.num_received:,} examples {len(examples):,} can be used, and {least} are needed (dropped: {why}): "
        "give more and more varied ones, or ask another teacher.",
        param="training_files" if spec.teacher is None else "teacher",
        code="too_few_examples",
    )


def _split(examples: Sequence[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples; those with one prompt stay together. The same split for the same examples.

    Of few examples a larger share is held out, so that there is something to judge by.
    """
    groups = [text_digest(prompt_of(example)) for example in examples]
    if len(set(groups)) < _LEAST_PROMPTS:
        groups = [text_digest(example.text) for example in examples]
    order = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    chosen = held_out_indices(len(order), fraction=max(fraction, LEAST_HELD_OUT / len(order)), seed=_SEED)
    is_held_out = [order[group] in chosen for group in groups]
    train = [example for example, out in zip(examples, is_held_out, strict=True) if not out]
    return train, [example for example, out in zip(examples, is_held_out, strict=True) if out]


def _write(folder: Path, train: Sequence[Example], held_out: Sequence[Example], report: dict[str, Any]) -> None:
    """Whole or not at all."""
    half_written = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(half_written, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    half_written.mkdir(parents=True)
    write_examples(half_written / "train.jsonl", train)
    write_examples(half_written / "held_out.jsonl", held_out)
    (half_written / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(half_written, folder)
