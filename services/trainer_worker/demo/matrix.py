"""The expert-by-domain matrix: the base model and every expert on every domain's held-out items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS, Domain, Item
from services.trainer_worker.demo.exact_match import exact_matches
from services.trainer_worker.demo.held_out_loss import HeldOutLoss, held_out_loss
from services.trainer_worker.demo.intervals import Estimate, paired_difference, wilson

BASE_ROW = "base"


@dataclass(frozen=True)
class Cell:
    """One model on one domain."""

    right: list[bool]
    loss: HeldOutLoss

    @property
    def exact_match(self) -> Estimate:
        """The share of right answers with its 95 % interval."""
        return wilson(sum(self.right), len(self.right))


Matrix = dict[str, dict[str, Cell]]
"""Row (the base model or an expert) to domain to cell."""


def load_model(base_dir: Path, adapter_dir: Path | None = None) -> PreTrainedModel:
    """The base model in float32, with an adapter folded in if one is given."""
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    if adapter_dir is not None:
        model = PeftModel.from_pretrained(model, str(adapter_dir)).merge_and_unload()
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def measure_matrix(
    base_dir: Path,
    experts_dir: Path,
    *,
    seed: int,
    num_items: int,
    on_cell: Callable[[str, str, Cell], None],
) -> Matrix:
    """Measure the base model and the five experts on `num_items` held-out items of each of the five domains."""
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    items = {name: DOMAINS[name].generate(seed, num_items, "held_out") for name in DEMO_DOMAINS}
    matrix: Matrix = {}
    for row in (BASE_ROW, *DEMO_DOMAINS):
        model = load_model(base_dir, None if row == BASE_ROW else experts_dir / row)
        matrix[row] = {}
        for name in DEMO_DOMAINS:
            matrix[row][name] = measure_cell(model, tokenizer, DOMAINS[name], items[name])
            on_cell(row, name, matrix[row][name])
    return matrix


def measure_cell(model: nn.Module, tokenizer: PreTrainedTokenizerBase, domain: Domain, items: Sequence[Item]) -> Cell:
    """Answer the items greedily and take the loss on them."""
    return Cell(right=exact_matches(model, tokenizer, domain, items), loss=held_out_loss(model, tokenizer, items))


def gain(matrix: Matrix, domain: str) -> Estimate:
    """How much larger the share of right answers is with the domain's own expert, paired over the items."""
    return paired_difference(matrix[domain][domain].right, matrix[BASE_ROW][domain].right)


def loss_reduction(matrix: Matrix, domain: str) -> float:
    """The share by which the domain's own expert lowers the held-out loss of completions."""
    return 1 - matrix[domain][domain].loss.completion / matrix[BASE_ROW][domain].loss.completion


def text_loss_reduction(matrix: Matrix, domain: str) -> float:
    """The share by which the domain's own expert lowers the held-out loss of whole texts."""
    return 1 - matrix[domain][domain].loss.text / matrix[BASE_ROW][domain].loss.text


def matrix_report(matrix: Matrix, *, seed: int, num_items: int) -> dict[str, Any]:
    """The matrix as plain values, as `matrix.json` holds it."""
    return {
        "seed": seed,
        "items_per_domain": num_items,
        "split": "held_out",
        "decoding": "greedy",
        "loss_unit": "nats per token",
        "cells": {
            row: {
                domain: {
                    "exact_match": asdict(cell.exact_match),
                    "completion_loss": cell.loss.completion,
                    "text_loss": cell.loss.text,
                }
                for domain, cell in cells.items()
            }
            for row, cells in matrix.items()
        },
        "own_domain": {
            domain: {
                "exact_match_gain": asdict(gain(matrix, domain)),
                "completion_loss_reduction": loss_reduction(matrix, domain),
                "text_loss_reduction": text_loss_reduction(matrix, domain),
            }
            for domain in DEMO_DOMAINS
        },
    }
