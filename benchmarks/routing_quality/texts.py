"""Five domains of real text as passages, split by document into training, validation and held-out parts."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PASSAGE_CHARACTERS = 700
TRAIN_CHARACTERS = 700_000
"""Per domain at most: what the smaller domains have, so that none gets more."""
_SHAKESPEARE_BLOCK_SPEECHES = 60
_FRONT_MATTER = ("ACKNOWLEDGMENTS", "GRIMM’S FAIRY TALES", "FOREWORD", "CONTENTS", "ILLUSTRATIONS")


@dataclass(frozen=True)
class DomainText:
    """Passages of one domain; no document has passages in two parts."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]


def read_domains(folder: Path, *, seed: int = 0) -> list[DomainText]:
    """GSM8K, MBPP, Shakespeare, Wikipedia and Grimm from `folder`; the split depends on `seed` alone."""
    return [_split(name, read(folder), seed) for name, read in READERS.items()]


def _split(name: str, documents: Sequence[str], seed: int) -> DomainText:
    order = np.random.default_rng(seed).permutation(len(documents)).tolist()
    num_held_out = max(2, round(0.15 * len(documents)))
    num_validation = max(1, round(0.05 * len(documents)))
    held_out, validation = order[:num_held_out], order[num_held_out : num_held_out + num_validation]
    train = order[num_held_out + num_validation :]
    train_passages = _passages(documents, train)
    train_passages = [train_passages[i] for i in np.random.default_rng(seed).permutation(len(train_passages))]
    sizes = np.cumsum([len(passage) for passage in train_passages])
    return DomainText(
        name=name,
        train=tuple(train_passages[: int(np.searchsorted(sizes, TRAIN_CHARACTERS))]),
        validation=tuple(_passages(documents, validation)),
        held_out=tuple(_passages(documents, held_out)),
    )


def _passages(documents: Sequence[str], indices: Sequence[int]) -> list[str]:
    return [passage for index in indices for passage in cut_passages(documents[index])]


def cut_passages(document: str) -> list[str]:
    """The document in pieces of about 700 characters that end at the end of a line or sentence."""
    pieces = re.split(r"(?<=\n)|(?<=[.!?] )", document)
    passages, current = [], ""
    for piece in pieces:
        if current and len(current) + len(piece) > PASSAGE_CHARACTERS:
            passages.append(current.strip())
            current = ""
        current += piece
    passages.append(current.strip())
    return [passage for passage in passages if passage]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")


def _json_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in _read(path).splitlines() if line.strip()]


def _gsm8k(folder: Path) -> list[str]:
    return [f"{row['question']}\n{row['answer']}" for row in _json_lines(folder / "gsm8k_train.jsonl")]


def _mbpp(folder: Path) -> list[str]:
    documents = []
    for row in _json_lines(folder / "mbpp.jsonl"):
        code = str(row["code"]).replace("\r\n", "\n")
        tests = row["test_list"]
        assert isinstance(tests, list)
        documents.append("\n".join([str(row["text"]), code, *tests]))
    return documents


def _shakespeare(folder: Path) -> list[str]:
    speeches = _read(folder / "tinyshakespeare.txt").split("\n\n")
    starts = range(0, len(speeches), _SHAKESPEARE_BLOCK_SPEECHES)
    return ["\n\n".join(speeches[start : start + _SHAKESPEARE_BLOCK_SPEECHES]) for start in starts]


def _wikipedia(folder: Path) -> list[str]:
    return [line.strip() for line in _read(folder / "wiki_demo.txt").splitlines() if line.strip()]


def _grimm(folder: Path) -> list[str]:
    text = _read(folder / "grimm_tales.txt")
    body = re.split(r"\*\*\* (?:START|END) OF THIS PROJECT GUTENBERG EBOOK[^\n]*\n", text)[1]
    body = re.sub(r"\[Illustration[^\]]*\]", "", body)
    title = r"[A-Z][A-Z ,;’'-]{3,}(?:\n[A-Z ,;’'-]+)?\n\n\n"
    tales = [tale.strip() for tale in re.split(rf"\n\n(?={title})", body) if re.match(title, tale)]
    return [re.sub(r"\n{3,}", "\n\n", tale) for tale in tales if tale.split("\n")[0] not in _FRONT_MATTER]


READERS: Mapping[str, Callable[[Path], list[str]]] = {
    "gsm8k": _gsm8k,
    "mbpp": _mbpp,
    "shakespeare": _shakespeare,
    "wikipedia": _wikipedia,
    "grimm": _grimm,
}
