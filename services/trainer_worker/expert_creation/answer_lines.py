"""A teacher's answer as examples: what can be used of it, and why the rest cannot."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from services.shared.training_text import Example

_FENCE: Final = re.compile(r"^\s*```\w*\s*$", re.MULTILINE)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_MAX_CHARACTERS: Final = 32_768


@dataclass(frozen=True)
class AnswerLines:
    """The examples of one answer; `dropped` counts the lines that are none, by reason."""

    examples: tuple[Example, ...]
    dropped: Counter[str]


def read_answer(text: str) -> AnswerLines:
    """Every line on its own: one that is no example costs nothing but itself. A JSON list counts as its lines."""
    examples: list[Example] = []
    dropped: Counter[str] = Counter()
    for value in _values(_FENCE.sub("", text)):
        reason = _fault(value)
        if reason is None:
            prompt, completion = value["prompt"], value["completion"]
            examples.append(Example(prompt + completion, ((len(prompt), len(prompt) + len(completion)),)))
        else:
            dropped[reason] += 1
    return AnswerLines(tuple(examples), dropped)


def _values(text: str) -> Iterator[Any]:
    """JSON by line; None where there is none."""
    whole = _parsed(text) if text.lstrip().startswith("[") else None
    if isinstance(whole, list):
        yield from whole
        return
    for line in text.split("\n"):
        if line.strip():
            yield _parsed(line)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _fault(value: Any) -> str | None:
    if not isinstance(value, dict):
        return "not_json"
    prompt, completion = value.get("prompt"), value.get("completion")
    if not isinstance(prompt, str) or not isinstance(completion, str):
        return "not_an_example"
    if not prompt.strip() or not completion.strip():
        return "empty"
    if len(prompt) + len(completion) > _MAX_CHARACTERS:
        return "too_long"
    return "control_characters" if _CONTROL.search(prompt + completion) else None
