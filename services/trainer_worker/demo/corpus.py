"""The base model's text: ordinary language with a modest share of every demo domain, packed into equal blocks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS
from services.trainer_worker.demo.generic_text import generate_generic

_BATCH_OF_TEXTS = 4_096


@dataclass(frozen=True)
class Corpus:
    """Documents in reading order, and how many of each kind they are."""

    texts: tuple[str, ...]
    num_documents: dict[str, int]


def write_corpus(seed: int, *, num_documents: int, domain_share: float) -> Corpus:
    """Generic documents, of which a share is replaced by training items of the demo domains, each equally often."""
    per_domain = round(num_documents * domain_share / len(DEMO_DOMAINS))
    num_generic = num_documents - per_domain * len(DEMO_DOMAINS)
    texts = generate_generic(seed, num_generic)
    for name in DEMO_DOMAINS:
        texts += [item.text for item in DOMAINS[name].generate(seed, per_domain, "train")]
    random.Random(f"corpus/{seed}").shuffle(texts)
    return Corpus(tuple(texts), {"generic": num_generic} | dict.fromkeys(DEMO_DOMAINS, per_domain))


def pack(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, block_length: int) -> npt.NDArray[np.int64]:
    """`<bos> text <eos>` one after the other, cut into rows [N, block_length]; the last partial row is left out."""
    stream: list[int] = []
    for start in range(0, len(texts), _BATCH_OF_TEXTS):
        for token_ids in tokenizer(list(texts[start : start + _BATCH_OF_TEXTS]))["input_ids"]:
            stream += [*token_ids, tokenizer.eos_token_id]
    num_blocks = len(stream) // block_length
    return np.asarray(stream[: num_blocks * block_length], dtype=np.int64).reshape(num_blocks, block_length)
