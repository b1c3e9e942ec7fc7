"""The demo's experts, trained by the same code as every expert job."""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.training_text import Example
from services.trainer_worker.demo.domains import DOMAINS, Item
from services.trainer_worker.demo.plan import BASE_NAME, TARGET_MODULES, ExpertPlan
from services.trainer_worker.demo.pretraining import NUM_THREADS, has_fast_bfloat16
from services.trainer_worker.progress import TrainingProgress
from services.trainer_worker.training.expert import ExpertTraining, train_expert

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
EXEMPLARS = "exemplars.jsonl"


def as_example(item: Item) -> Example:
    """The item as training code takes it: one text, with the place where the completion begins."""
    return Example(text=item.text, completions=((len(item.prompt), len(item.text)),))


def train_demo_expert(
    domain: str,
    *,
    base_dir: Path,
    output_dir: Path,
    seed: int,
    plan: ExpertPlan,
    on_progress: Callable[[TrainingProgress], None],
) -> ExpertTraining:
    """Train the domain's expert on its training items and put its two files into `output_dir`."""
    train = DOMAINS[domain].generate(seed, plan.items_for(domain), "train")
    validation = DOMAINS[domain].generate(seed, plan.num_validation_items, "validation")
    with tempfile.TemporaryDirectory() as scratch:
        training = train_expert(
            base_model=str(base_dir),
            train=[as_example(item) for item in train],
            validation=[as_example(item) for item in validation],
            hyperparameters=hyperparameters_of(plan, num_steps=plan.steps_for(domain), seed=seed),
            output_dir=Path(scratch),
            on_progress=on_progress,
            should_stop=lambda: False,
            resume=False,
            num_threads=NUM_THREADS,
        )
        output_dir.mkdir(parents=True, exist_ok=True)
        for name in ADAPTER_FILES:
            shutil.copyfile(training.adapter_dir / name, output_dir / name)
    shrink_adapter(output_dir)
    return training


def hyperparameters_of(plan: ExpertPlan, *, num_steps: int, seed: int) -> ExpertHyperparameters:
    """The plan in the terms of an expert job."""
    return ExpertHyperparameters(
        rank=plan.rank,
        alpha=plan.alpha,
        dropout=plan.dropout,
        target_modules=TARGET_MODULES,
        learning_rate=plan.learning_rate,
        batch_size=plan.batch_size,
        max_steps=num_steps,
        max_length=plan.block_length,
        weight_decay=plan.weight_decay,
        warmup_ratio=plan.warmup_ratio,
        lr_scheduler="cosine",
        mixed_precision="bf16" if has_fast_bfloat16() else "no",
        early_stopping_patience=0,
        eval_steps=math.ceil(num_steps / 3),
        seed=seed,
    )


def shrink_adapter(folder: Path) -> None:
    """Store the adapter in bfloat16, and name the base model without a path."""
    weights_file = folder / "adapter_model.safetensors"
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(weights_file).items()}
    save_file(weights, weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)  # safetensors makes it private; services under other users read it
    config_file = folder / "adapter_config.json"
    config = json.loads(config_file.read_text())
    config["base_model_name_or_path"] = BASE_NAME
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_exemplars(domain: str, path: Path, *, seed: int, num_bytes: int) -> None:
    """Write a random sample of the domain's training texts, of about `num_bytes`, as `{"text"}` lines."""
    items = DOMAINS[domain].generate(seed, num_bytes // 40, "train")
    random.Random(f"exemplars/{domain}/{seed}").shuffle(items)
    path.write_text("".join(_lines_within(items, num_bytes)), encoding="utf-8")


def _lines_within(items: Sequence[Item], num_bytes: int) -> list[str]:
    lines: list[str] = []
    size = 0
    for item in items:
        line = json.dumps({"text": item.text}, ensure_ascii=False) + "\n"
        size += len(line.encode())
        if size > num_bytes:
            break
        lines.append(line)
    return lines
