"""Examples as JSON lines that anybody can read and upload again: prompt and completion, or a text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.shared.training_text import Example


def write_examples(file: Path, examples: Sequence[Example]) -> None:
    """One line each."""
    lines = (json.dumps(_fields(example), ensure_ascii=False) + "\n" for example in examples)
    file.write_text("".join(lines), encoding="utf-8")


def read_kept(file: Path) -> list[Example]:
    """What `write_examples` has written, completions where they were."""
    return [_example(json.loads(line)) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _fields(example: Example) -> dict[str, Any]:
    spans, text = example.completions, example.text
    if spans is not None and len(spans) == 1 and spans[0][1] == len(text):
        return {"prompt": text[: spans[0][0]], "completion": text[spans[0][0] :]}
    # The turns of a chat: read_kept knows where they are, a file that is uploaded is all text.
    return {"text": text, **({"completions": spans} if spans is not None else {})}


def _example(fields: dict[str, Any]) -> Example:
    if "text" in fields:
        spans = fields.get("completions")
        return Example(fields["text"], None if spans is None else tuple((start, stop) for start, stop in spans))
    text = fields["prompt"] + fields["completion"]
    return Example(text, ((len(fields["prompt"]), len(text)),))
