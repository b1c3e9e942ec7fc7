"""What was recorded, as a trace's folder with the texts beside it, and in the requirements' layout where asked for."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import Phase
from services.traces.description import TraceDescription
from services.traces.directory_layout import DirectoryLayout
from services.traces.table import TraceWriter
from services.trainer_worker.tracing.generation import RecordedSequence
from services.trainer_worker.tracing.recording import TokenizedPrompt
from services.trainer_worker.tracing.repetition import repetition_finding
from services.trainer_worker.tracing.subject import Traced

TEXTS: Final = "texts.jsonl"
"""Beside the tables: what was asked and answered, a line for each sequence."""


def write_trace(
    folder: Path,
    sequences: Iterable[tuple[TokenizedPrompt, RecordedSequence]],
    subject: Traced,
    *,
    layout: DirectoryLayout | None,
    about: Mapping[str, Any],
) -> TraceDescription:
    """Into the empty `folder`, and at the same time into the requirements' layout, if one is given."""
    names: list[str] = []
    answers: list[NDArray[np.int64]] = []
    with (
        TraceWriter(folder, source=subject.source, model=subject.name) as writer,
        (folder / TEXTS).open("w", encoding="utf-8") as texts,
    ):
        for prompt, sequence in sequences:
            phases = np.full(len(sequence.token_ids_T), Phase.GENERATED, dtype=np.uint8)
            phases[: sequence.num_prompt_tokens] = Phase.PROMPT
            _add(writer, prompt, sequence, phases)
            if layout is not None:
                layout.add(prompt.domain, prompt.id, phases, sequence.layers)
            generated = sequence.token_ids_T[sequence.num_prompt_tokens :]
            names.append(f"{prompt.domain}/{prompt.id}")
            answers.append(generated)
            line = {"domain": prompt.domain, "id": prompt.id, "prompt": prompt.text}
            line["answer"] = subject.tokenizer.decode(generated.tolist())
            texts.write(json.dumps(line, ensure_ascii=False) + "\n")
        repetition = repetition_finding(names, answers)
        description = writer.finish(
            num_experts=dict(subject.recorder.num_experts),
            experts=subject.experts,
            findings=[repetition] if repetition is not None else [],
            **{**subject.about, **about},
        )
    if layout is not None:
        layout.finish(description)
    return description


def _add(writer: TraceWriter, prompt: TokenizedPrompt, sequence: RecordedSequence, phases: NDArray[np.uint8]) -> None:
    number = writer.add_sequence(prompt.domain, prompt.id)
    positions = np.arange(len(phases))
    for layer, choices in sequence.layers.items():
        writer.add(
            layer,
            number,
            positions=positions,
            phases=phases,
            experts=choices.experts,
            weights=choices.weights,
            token_ids=sequence.token_ids_T,
        )
