"""What one seed trains: plain experts, a shared expert with experts on top of it, and one multi-task adapter.

Every arm reads as many tokens: N steps for each of the five experts, or 5 N for one adapter, or 5 N / 2 for the
shared expert and N / 2 for each of those on top. Total rank: shared and on top 16 + 5 * 8, multi-task 56, plain 5 * 8.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.routing_quality.texts import DomainText, read_domains
from services.shared.config import RouterSettings, Settings
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.base_row import sample_base_text
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.router_artifact import BIGRAM_FILE, EVIDENCE_FOLDER, write_bayes_router
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.training_text import Example
from services.trainer_worker.training.expert import ExpertTraining, train_expert

RANK: Final = 8
SHARED_RANK: Final = 16
BATCH: Final = 4
LENGTH: Final = 256
LEARNING_RATES: Final = {RANK: 1e-2, SHARED_RANK: 6e-3}
"""The experts' own rate; between it and the multi-task adapter's where the rank is between theirs."""
MULTI_TASK_LEARNING_RATE: Final = 3e-3
_VALIDATION_PASSAGES: Final = 12
_GENERIC_TOKENS: Final = 50_000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Arms:
    """The adapters' folders by arm; `experts` of an arm are (domain, folder) in the order of the gate's columns."""

    plain: Sequence[tuple[str, Path]]
    shared: Path
    on_top: Sequence[tuple[str, Path]]
    merged: Path
    multi_task: Path
    num_steps: dict[str, int]


class Bench:
    """One seed's texts and everything trained on them, in one folder; finished trainings are reused."""

    def __init__(self, shared: Path, work: Path, *, seed: int, steps: int, multi_task_rate: float) -> None:
        self.base: LoadedBase = load_base_model(
            Settings(base_model=str(shared / "models/stories260K-hf"), device="cpu")
        )
        self.domains = read_domains(shared / "data/text", seed=seed)
        self.seed = seed
        self.steps = steps
        self._multi_task_rate = multi_task_rate
        self._work = work
        self._folder = work / f"seed{seed}"

    @property
    def multi_task_rank(self) -> int:
        """As much as the shared expert and those on top of it have together."""
        return SHARED_RANK + len(self.domains) * RANK

    def train(self, say: Say) -> Arms:
        """All arms."""
        number, half = len(self.domains), self.steps // 2
        pooled = number * self.steps
        shared = self._adapter("shared", self.domains, steps=pooled - number * half, rank=SHARED_RANK, say=say)
        merged = self._merged(shared)
        multi_task = self._adapter(
            f"multi-task-{self._multi_task_rate:g}", self.domains, steps=pooled, rank=self.multi_task_rank, say=say
        )
        on_top = [
            (domain.name, self._adapter(f"top-{domain.name}", [domain], steps=half, rank=RANK, say=say, base=merged))
            for domain in self.domains
        ]
        plain = [
            (domain.name, self._adapter(f"plain-{domain.name}", [domain], steps=self.steps, rank=RANK, say=say))
            for domain in self.domains
        ]
        for (_, folder), domain in zip(plain, self.domains, strict=True):
            self._write_evidence(folder, domain)
        num_steps = {"plain": self.steps, "shared": pooled - number * half, "on top": half, "multi-task": pooled}
        return Arms(plain, shared, on_top, merged, multi_task, num_steps)

    def scorer(self, arms: Arms) -> ReleaseScorer:
        """The default router. It reads texts alone, so experts on top are weighed exactly as the plain ones are."""
        router = self._work / "router"
        if not router.exists():
            evidence = build_bigram_evidence(self._generic_text(), self.base.tokenizer.vocab_size)
            write_bayes_router(router, settings=RouterSettings(), base_evidence=evidence)
        return ReleaseScorer.load(
            router_dir=router, graph_dir=None, experts=arms.plain, vocab_size=self.base.tokenizer.vocab_size
        )

    def _adapter(
        self,
        name: str,
        domains: Sequence[DomainText],
        *,
        steps: int,
        rank: int,
        say: Say,
        base: Path | None = None,
    ) -> Path:
        training: ExpertTraining = train_expert(
            base_model=str(base or self.base.name),
            train=[Example(text, None) for domain in domains for text in domain.train],
            validation=[Example(text, None) for domain in domains for text in domain.validation[:_VALIDATION_PASSAGES]],
            hyperparameters=self._hyperparameters(steps, rank),
            output_dir=self._folder / name,
            on_progress=lambda progress: None,
            should_stop=lambda: False,
        )
        losses = f"{training.base_eval_loss:.3f} -> {training.best_eval_loss:.3f}"
        say(f"seed {self.seed}: {name}, {steps} steps, validation {losses}")
        return training.adapter_dir

    def _hyperparameters(self, steps: int, rank: int) -> ExpertHyperparameters:
        return ExpertHyperparameters(
            rank=rank,
            alpha=2.0 * rank,
            dropout=0.0,
            learning_rate=LEARNING_RATES.get(rank, self._multi_task_rate),
            lr_scheduler="cosine",
            batch_size=BATCH,
            max_length=LENGTH,
            max_steps=steps,
            eval_steps=steps,
            early_stopping_patience=0,
            seed=self.seed,
        )

    def _merged(self, adapter: Path) -> Path:
        """The base model with the shared expert added to its weights: what an always-on expert amounts to."""
        folder = self._folder / "merged"
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            bare = AutoModelForCausalLM.from_pretrained(self.base.name, use_safetensors=True)
            PeftModel.from_pretrained(bare, str(adapter)).merge_and_unload().save_pretrained(folder)
            AutoTokenizer.from_pretrained(self.base.name).save_pretrained(folder)
            (folder / "done").touch()
        return folder

    def _write_evidence(self, adapter: Path, domain: DomainText) -> None:
        streams = self.base.tokenizer.encode_batch(list(domain.train))
        evidence = build_bigram_evidence(streams, self.base.tokenizer.vocab_size)
        evidence.save(adapter / EVIDENCE_FOLDER / BIGRAM_FILE)

    def _generic_text(self) -> list[list[int]]:
        """What the base model writes by itself, sampled once."""
        file = self._work / "generic.json"
        if not file.exists():
            text = sample_base_text(self.base.model, self.base.tokenizer, num_tokens=_GENERIC_TOKENS, seed=0)
            file.write_text(json.dumps(text))
        kept: list[list[int]] = json.loads(file.read_text())
        return kept
