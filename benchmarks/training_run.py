"""One training in a process of its own, so that its peak memory is its own, step by step as it is told to.

Whenever a step has ended it says so on stdout and waits for a line on stdin: so that several trainings take their steps
in turns. At the end what it took goes to stdout as JSON.

`ours` is what an expert job runs (`train_expert`), `bare` is the script that one would write with PEFT and
`transformers.Trainer`: same blocks in the same order, same base, batch, steps, precision, evaluations and checkpoints.
`router` trains a learned router over the demo's experts. Started by benchmarks/training.py.
"""

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from services.shared.config import Settings
from services.shared.modeling.base_model import load_base_model
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.jobs import RouterHyperparameters
from services.shared.training_text import Example
from services.trainer_worker.datasets import IGNORED, Block, make_blocks
from services.trainer_worker.demo.domains import DOMAINS
from services.trainer_worker.progress import TrainingProgress
from services.trainer_worker.training.expert import train_expert
from services.trainer_worker.training.expert_trainer import Schedule
from services.trainer_worker.training.router import train_learned_router

PROJECT: Final = Path(__file__).resolve().parents[1]
NUM_EXAMPLES, NUM_VALIDATION = 600, 16


@dataclass
class Turns:
    """Seconds from the end of each step to the end of the next, waiting for the turn left out: evaluations and
    checkpoints belong to the interval after theirs."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    began: tuple[float, float] | None = None

    def reported(self, progress: TrainingProgress) -> None:
        """As `on_progress` of our trainings."""
        if progress.phase == "training":
            self.num_tokens = progress.num_tokens or 0
            self.step_ended()

    def step_ended(self) -> None:
        """Note what the interval took, and wait for the next turn."""
        wall, cpu = time.perf_counter(), time.process_time()
        if self.began is not None:
            self.wall_s.append(wall - self.began[0])
            self.cpu_s.append(cpu - self.began[1])
        print("step", flush=True)
        sys.stdin.readline()
        self.began = time.perf_counter(), time.process_time()


class Watch(TrainerCallback):
    """Marks the bare script's steps."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Mark it."""
        self._turns.step_ended()


def texts(domain: str) -> tuple[list[Example], list[Example]]:
    """Training and validation examples of one of the demo's domains."""
    made = []
    for split, count in (("train", NUM_EXAMPLES), ("validation", NUM_VALIDATION)):
        items = DOMAINS[domain].generate(0, count, split)
        made.append([Example(item.text, len(item.prompt)) for item in items])
    return made[0], made[1]


def run_ours(base: str, hyperparameters: ExpertHyperparameters, folder: Path, turns: Turns) -> Path:
    """The expert job's training; where its last checkpoint is."""
    train, validation = texts("math")
    train_expert(
        base_model=base,
        train=train,
        validation=validation,
        hyperparameters=hyperparameters,
        output_dir=folder,
        on_progress=turns.reported,
        should_stop=lambda: False,
        num_threads=torch.get_num_threads(),
    )
    return folder / "checkpoints"


def run_bare(base: str, wanted: ExpertHyperparameters, folder: Path, turns: Turns) -> Path:
    """PEFT and Trainer as their documentation shows them; where the last checkpoint is."""
    set_seed(wanted.seed)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype="float32" if wanted.mixed_precision == "no" else "bfloat16"
    )
    model.config.use_cache = False
    train, validation = (bare_rows(blocks) for blocks in blocks_of(base, wanted))
    set_seed(wanted.seed)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=wanted.rank,
        lora_alpha=int(wanted.alpha),
        lora_dropout=wanted.dropout,
        target_modules="all-linear",
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=wanted.max_steps,
        per_device_train_batch_size=wanted.batch_size,
        per_device_eval_batch_size=wanted.batch_size,
        learning_rate=wanted.learning_rate,
        warmup_steps=math.ceil((wanted.max_steps or 0) * wanted.warmup_ratio),
        lr_scheduler_type=wanted.lr_scheduler,
        weight_decay=wanted.weight_decay,
        bf16=wanted.mixed_precision == "bf16",
        eval_strategy="steps",
        eval_steps=wanted.eval_steps,
        save_strategy="steps",
        save_steps=wanted.eval_steps,
        save_total_limit=3,
        logging_steps=wanted.eval_steps,
        train_sampling_strategy="sequential",
        seed=wanted.seed,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=[],
    )
    trainer = Trainer(
        get_peft_model(model, lora),
        arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=bare_batch,
        callbacks=[Watch(turns)],
    )
    set_seed(wanted.seed)
    trainer.train()
    return folder


def blocks_of(base: str, wanted: ExpertHyperparameters) -> tuple[list[Block], list[Block]]:
    """What an expert job trains on, in its order, and validates with."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    train, validation = (
        make_blocks(
            examples,
            tokenizer,
            max_length=wanted.max_length,
            packing=wanted.packing,
            completion_only=wanted.completion_only_loss,
            seed=wanted.seed,
        )
        for examples in texts("math")
    )
    length = (wanted.max_steps or 0) * wanted.batch_size
    schedule = Schedule(train, length=length, seed=wanted.seed)
    return [schedule[index] for index in range(length)], validation


def bare_rows(blocks: Items[Block]) -> list[dict[str, Tensor]]:
    """Rows of tensors, as a data set gives them."""
    return [
        {
            "input_ids": torch.from_numpy(block.token_ids_T),
            "labels": torch.from_numpy(block.labels_T),
            "position_ids": torch.from_numpy(block.positions_T),
        }
        for block in blocks
    ]


def bare_batch(rows: Items[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Padded on the right."""
    return {
        name: pad_sequence(
            [row[name] for row in rows], batch_first=True, padding_value=IGNORED if name == "labels" else 0
        )
        for name in rows[0]
    }


def run_router(base: str, wanted: ExpertHyperparameters, folder: Path, turns: Turns) -> None:
    """A learned router over the demo's experts, on batches of the same size."""
    settings = Settings(base_model=base)
    folders = sorted((PROJECT / "demo" / "experts").iterdir())
    train_learned_router(
        base=load_base_model(settings),
        experts=[(path.name, path) for path in folders],
        texts={path.name: texts(path.name)[0] for path in folders},
        settings=settings.router,
        hyperparameters=RouterHyperparameters(
            num_steps=wanted.max_steps or 1,
            batch_size=wanted.batch_size,
            max_length=wanted.max_length,
            seed=wanted.seed,
        ),
        output_dir=folder,
        on_progress=turns.reported,
        should_stop=lambda: False,
    )


def first_loss(checkpoints: Path, step: int) -> float:
    """Mean training loss until the first evaluation, from the last checkpoint: equal losses are equal computations.

    After it the trainings drift apart: `Trainer`'s own evaluation draws random numbers, which the dropout then misses.
    """
    state = json.loads((checkpoints / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return next(float(entry["loss"]) for entry in state["log_history"] if "loss" in entry)


def peak_memory_bytes() -> int:
    """VmHWM: unlike getrusage, not what the process that started this one had; of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Train once and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=("ours", "bare", "router"))
    parser.add_argument("base")
    parser.add_argument("folder", type=Path)
    parser.add_argument("hyperparameters", type=json.loads)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hyperparameters = ExpertHyperparameters(**options.hyperparameters)
    turns = Turns()
    if options.system == "router":
        run_router(options.base, hyperparameters, options.folder, turns)
        loss = None
    else:
        run = run_ours if options.system == "ours" else run_bare
        checkpoints = run(options.base, hyperparameters, options.folder, turns)
        loss = first_loss(checkpoints, hyperparameters.max_steps or 0)
    figures = {
        "wall_s": turns.wall_s,
        "cpu_s": turns.cpu_s,
        "num_tokens": turns.num_tokens,
        "peak_memory_bytes": peak_memory_bytes(),
        "first_loss": loss,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
