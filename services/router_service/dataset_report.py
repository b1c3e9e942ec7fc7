"""A look through a training file before a job is accepted: examples, tokens, duplicates. Every line is checked."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from services.router_service.schemas.dry_run import FileReport, HistogramBin
from services.shared.tokenizer import Tokenizer
from services.shared.training_text import Example, text_digest

_TOKENISED_CHARACTERS: Final = 16 * 1024**2
"""More than this is not tokenised but reckoned from the tokens per character so far: seconds, not minutes."""

_BATCH: Final = 256


@dataclass(frozen=True)
class Survey:
    """One file's examples by their numbers only, so that large files cost little memory."""

    sizes_N: npt.NDArray[np.int64]
    """Tokens per example, begin and end included."""

    digests_N: npt.NDArray[np.uint64]
    is_exact: bool

    def report(self, *, file_id: str, max_length: int) -> FileReport:
        """What a person wants to know of it."""
        sizes_N = self.sizes_N
        percentiles = {f"p{share}": float(np.percentile(sizes_N, share)) for share in (50, 90, 99)}
        return FileReport(
            file=file_id,
            num_examples=len(sizes_N),
            num_tokens=int(sizes_N.sum()),
            is_exact=self.is_exact,
            tokens_per_example={
                "min": float(sizes_N.min()), "mean": round(float(sizes_N.mean()), 2), **percentiles,
                "max": float(sizes_N.max()),
            },
            histogram=_histogram(sizes_N),
            num_duplicates=len(sizes_N) - len(np.unique(self.digests_N)),
            num_cut=int((sizes_N > max_length).sum()),
        )  # fmt: skip

    def num_shared(self, other: "Survey") -> int:
        """How many of the examples are in the other file too."""
        return int(np.isin(self.digests_N, other.digests_N).sum())


def survey(examples: Iterable[Example], tokenizer: Tokenizer) -> Survey:
    """Read all examples once. Raises what reading them raises, InvalidDataset with the line above all."""
    sizes, digests = array("q"), array("Q")
    num_tokens, num_characters = 0, 0
    for batch in _batches(examples):
        texts = [example.text for example in batch]
        digests.extend(text_digest(text) for text in texts)
        if num_characters < _TOKENISED_CHARACTERS:
            counted = document_sizes(texts, tokenizer)
            num_tokens += sum(counted)
            num_characters += sum(map(len, texts))
            sizes.extend(counted)
        else:
            sizes.extend(max(1, round(len(text) * num_tokens / num_characters)) for text in texts)
    is_exact = num_characters < _TOKENISED_CHARACTERS
    return Survey(np.array(sizes, dtype=np.int64), np.array(digests, dtype=np.uint64), is_exact)


def document_sizes(texts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """Tokens per text as training frames it: with begin and end of text, where the base model has them."""
    begin = tokenizer.bos_id
    has_begin = begin is not None and tokenizer.encode("a")[:1] == [begin]
    sizes = []
    for ids in tokenizer.encode_batch(texts, add_special_tokens=False):
        adds_begin = has_begin and ids[:1] != [begin]
        adds_end = tokenizer.eos_id is not None and ids[-1:] != [tokenizer.eos_id]
        sizes.append(len(ids) + adds_begin + adds_end)
    return sizes


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    rest = iter(examples)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _histogram(sizes_N: npt.NDArray[np.int64]) -> list[HistogramBin]:
    """Bins that double, from the first to the last that is not empty."""
    exponents_N = np.ceil(np.log2(np.maximum(sizes_N, 1))).astype(int)
    counts = np.bincount(exponents_N)
    first = int(np.flatnonzero(counts)[0])
    return [
        HistogramBin(up_to=2**exponent, num_examples=int(counts[exponent])) for exponent in range(first, len(counts))
    ]
