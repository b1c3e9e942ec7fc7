"""What goes into an expert version's folder beside the adapter: its evidence model and a sample of its text.

Imports (router service) and training (worker) share it, so that an expert is recognised alike however it came.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.shared.modeling.bigram_evidence import BigramEvidence, build_bigram_evidence
from services.shared.modeling.router_artifact import BIGRAM_FILE, EVIDENCE_FOLDER
from services.shared.tokenizer import Tokenizer
from services.shared.training_text import Example

EXEMPLARS_FILE: Final = "exemplars.jsonl"
_MAX_EXEMPLARS: Final = 200
_MAX_EXEMPLAR_BYTES: Final = 256 * 1024
_SEED: Final = 0


def add_evidence(folder: Path, *, examples: Sequence[Example], tokenizer: Tokenizer) -> None:
    """Write the evidence model of `examples` and a sample of them into an expert's folder; the same bytes each time."""
    evidence_of(examples, tokenizer).save(folder / EVIDENCE_FOLDER / BIGRAM_FILE)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in _sample(examples))
    (folder / EXEMPLARS_FILE).write_text("".join(lines), encoding="utf-8")


def evidence_of(examples: Sequence[Example], tokenizer: Tokenizer) -> BigramEvidence:
    """Token pairs counted in random windows of the texts, tokenised as requests are."""
    streams = tokenizer.encode_batch([example.text for example in examples])
    return build_bigram_evidence(streams, tokenizer.vocab_size, seed=_SEED)


def _sample(examples: Sequence[Example]) -> list[str]:
    """Some texts, in file order, chosen at random but always the same ones."""
    chosen = sorted(random.Random(_SEED).sample(range(len(examples)), min(_MAX_EXEMPLARS, len(examples))))
    texts: list[str] = []
    num_bytes = 0
    for index in chosen:
        num_bytes += len(examples[index].text.encode())
        if num_bytes > _MAX_EXEMPLAR_BYTES and texts:
            break
        texts.append(examples[index].text)
    return texts
