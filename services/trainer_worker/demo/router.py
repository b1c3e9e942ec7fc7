"""The demo's router: the Bayes filter over bigram evidence (DESIGN D1), which needs no training.

The experts' own evidence is counted from their exemplars; what the router itself holds is the base model's row, counted
from text that the base model writes.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from services.shared.config import RouterSettings
from services.shared.modeling.base_row import sample_base_text
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.router_artifact import write_bayes_router
from services.shared.tokenizer import load_tokenizer


def write_demo_router(folder: Path, *, base_dir: Path, model: PreTrainedModel, num_tokens: int, seed: int) -> None:
    """Write the router's folder, with the default settings; the base row is counted from about `num_tokens` tokens."""
    tokenizer = load_tokenizer(str(base_dir))
    streams = sample_base_text(model, tokenizer, num_tokens=num_tokens, seed=seed)
    evidence = build_bigram_evidence(streams, tokenizer.vocab_size, seed=seed)
    write_bayes_router(folder, settings=RouterSettings(), base_evidence=evidence)
