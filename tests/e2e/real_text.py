"""Real text from the shared folder, cut into documents: what an ML engineer would upload."""

import json
import re
from pathlib import Path


def gsm8k(folder: Path, split: str = "train") -> list[str]:
    """Grade-school problems with their worked answers."""
    lines = (folder / f"gsm8k_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [f"{item['question']}\n{item['answer']}" for item in map(json.loads, lines)]


def mbpp(folder: Path) -> list[str]:
    """Small Python problems: the task, then its code."""
    lines = (folder / "mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    return [" ".join(str(value) for value in item.values() if isinstance(value, str)) for item in items]


def shakespeare(folder: Path, num_characters: int = 600) -> list[str]:
    """Speeches, grouped into documents of about `num_characters`."""
    return _group(re.split(r"\n\s*\n", (folder / "tinyshakespeare.txt").read_text(encoding="utf-8")), num_characters)


def _group(paragraphs: list[str], num_characters: int) -> list[str]:
    documents, current = [], ""
    for paragraph in paragraphs:
        current = f"{current}\n\n{paragraph}".strip()
        if len(current) >= num_characters:
            documents.append(current)
            current = ""
    return documents


def as_jsonl(texts: list[str]) -> bytes:
    """`{"text"}` lines, as `POST /files` takes them."""
    return "\n".join(json.dumps({"text": text}) for text in texts).encode()
