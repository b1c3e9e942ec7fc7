"""Examples of a teacher: asked for until there are enough, and every answer kept, so that none is asked for twice."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.shared.errors import JobFailed
from services.shared.training_text import Example
from services.trainer_worker.expert_creation.answer_lines import read_answer
from services.trainer_worker.expert_creation.cleaning import Cleaned
from services.trainer_worker.expert_creation.data_request import DataRequest
from services.trainer_worker.expert_creation.teacher import Teacher

_FRUITLESS: Final = 5
"""Answers in a row without an example that is new: the teacher has nothing more to say."""
_MOST_ANSWERS_PER_NEEDED: Final = 4


@dataclass(frozen=True)
class Generated:
    """What was asked for and came; `cleaned` is what may be learned of it, `unreadable` the lines that were none."""

    num_answers: int
    num_examples: int
    cleaned: Cleaned
    unreadable: Counter[str]
    gave_up: str | None


def generate(
    teacher: Teacher,
    request: DataRequest,
    *,
    wanted: int,
    folder: Path,
    clean: Callable[[list[Example]], Cleaned],
    on_answer: Callable[[int], None],
) -> Generated:
    """Ask until `wanted` clean examples are there or no more come; `on_answer` hears how many there are.

    Answers that an interruption left in `folder` are not asked for again. Raises what the teacher raises, unless it
    fails after some were clean: then `gave_up` says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples: list[Example] = []
    unreadable: Counter[str] = Counter()
    cleaned = clean(examples)
    number, fruitless, gave_up = 0, 0, None
    most = _MOST_ANSWERS_PER_NEEDED * -(-wanted // teacher.examples_per_request) + _FRUITLESS
    while len(cleaned.kept) < wanted and number < most and fruitless < _FRUITLESS:
        try:
            answer = _kept_answer(folder / f"{number:05}.txt", teacher, request, number)
        except JobFailed as error:
            if not cleaned.kept:
                raise
            gave_up = error.message
            break
        lines = read_answer(answer)
        examples.extend(lines.examples)
        unreadable += lines.dropped
        before, cleaned = len(cleaned.kept), clean(examples)
        fruitless = 0 if len(cleaned.kept) > before else fruitless + 1
        number += 1
        on_answer(len(cleaned.kept))
    return Generated(number, len(examples), cleaned, unreadable, gave_up)


def _kept_answer(file: Path, teacher: Teacher, request: DataRequest, number: int) -> str:
    if not file.exists():
        half_written = file.with_suffix(".part")
        answer = teacher.ask(request, count=teacher.examples_per_request, number=number)
        half_written.write_text(answer, encoding="utf-8", errors="replace")
        os.replace(half_written, file)
    return file.read_text(encoding="utf-8")
