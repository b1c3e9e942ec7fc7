"""The demo build's stages, in order. To add one (evidence, router, graph), add its function and a line in `STAGES`.

A stage reads what earlier ones wrote into the output folder and writes its own files there; it knows nothing of
progress bars beyond `context.advance`, and nothing of whether it is run for the first time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from services.trainer_worker.demo.base_tokenizer import train_tokenizer
from services.trainer_worker.demo.calibration import write_demo_calibration
from services.trainer_worker.demo.corpus import Corpus, pack, write_corpus
from services.trainer_worker.demo.domains import DEMO_DOMAINS
from services.trainer_worker.demo.experts import ADAPTER_FILES, EXEMPLARS, train_demo_expert, write_exemplars
from services.trainer_worker.demo.graph import write_demo_graph
from services.trainer_worker.demo.matrix import Cell, load_model, matrix_report, measure_matrix
from services.trainer_worker.demo.model_card import write_model_card
from services.trainer_worker.demo.plan import DemoPlan
from services.trainer_worker.demo.pretraining import StepReport, new_base_model, pretrain
from services.trainer_worker.demo.router import write_demo_router
from services.trainer_worker.progress import TrainingProgress


@dataclass(frozen=True)
class BuildContext:
    """What every stage is given."""

    folder: Path
    seed: int
    plan: DemoPlan
    advance: Callable[[int, int, str], None]
    """Tell how many of how many units are done, with a short note."""

    @property
    def base_dir(self) -> Path:
        """The base model with its tokenizer."""
        return self.folder / "base"

    @property
    def experts_dir(self) -> Path:
        """One folder per expert."""
        return self.folder / "experts"


@dataclass(frozen=True)
class Stage:
    """A named part of the build, and the files by whose presence one knows that it was done."""

    name: str
    run: Callable[[BuildContext], None]
    outputs: tuple[str, ...]


def _corpus(context: BuildContext) -> Corpus:
    return write_corpus(context.seed, num_documents=context.plan.num_documents, domain_share=context.plan.domain_share)


def _tokenizer(context: BuildContext) -> None:
    texts = _corpus(context).texts[: context.plan.num_tokenizer_texts]
    tokenizer = train_tokenizer(texts, max_context=context.plan.shape.max_context)
    tokenizer.save_pretrained(context.base_dir)


def _base(context: BuildContext) -> None:
    plan = context.plan
    tokenizer = AutoTokenizer.from_pretrained(context.base_dir)
    corpus = _corpus(context)
    context.advance(0, plan.pretraining.num_steps, "tokenising")
    blocks = pack(tokenizer, corpus.texts, block_length=plan.pretraining.block_length)
    if len(blocks) < plan.pretraining.num_blocks:
        raise ValueError(f"the corpus fills only {len(blocks)} blocks: raise num_documents")
    token_ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    model = new_base_model(plan.shape, vocab_size=len(tokenizer), seed=context.seed, token_ids=token_ids)

    def report(step: StepReport) -> None:
        context.advance(step.step, step.num_steps, f"loss {step.loss:.3f}")

    pretrain(model, blocks, plan.pretraining, on_step=report)
    model.bfloat16().save_pretrained(context.base_dir)
    (context.base_dir / "model.safetensors").chmod(0o644)  # safetensors makes it private
    (context.folder / "corpus.json").write_text(
        json.dumps(
            {
                "documents_written": corpus.num_documents,
                "tokens_trained_on": plan.pretraining.num_blocks * plan.pretraining.block_length,
            },
            indent=2,
        )
        + "\n"
    )


def _expert_stage(domain: str) -> Stage:
    def run(context: BuildContext) -> None:
        def report(progress: TrainingProgress) -> None:
            loss = "" if progress.loss is None else f"loss {progress.loss:.3f}"
            context.advance(progress.step, max(progress.total_steps, 1), loss or progress.phase)

        folder = context.experts_dir / domain
        train_demo_expert(
            domain,
            base_dir=context.base_dir,
            output_dir=folder,
            seed=context.seed,
            plan=context.plan.expert,
            on_progress=report,
        )
        write_exemplars(domain, folder / EXEMPLARS, seed=context.seed, num_bytes=context.plan.exemplar_bytes)

    return Stage(f"expert-{domain}", run, tuple(f"experts/{domain}/{name}" for name in (*ADAPTER_FILES, EXEMPLARS)))


def _matrix(context: BuildContext) -> None:
    total = (len(DEMO_DOMAINS) + 1) * len(DEMO_DOMAINS)
    num_done = 0

    def report(row: str, domain: str, cell: Cell) -> None:
        nonlocal num_done
        num_done += 1
        context.advance(num_done, total, f"{row} on {domain}: {cell.exact_match.value:.1%}")

    num_items = context.plan.num_held_out_items
    matrix = measure_matrix(
        context.base_dir, context.experts_dir, seed=context.seed, num_items=num_items, on_cell=report
    )
    report_text = json.dumps(matrix_report(matrix, seed=context.seed, num_items=num_items), indent=2)
    (context.folder / "matrix.json").write_text(report_text + "\n")


def _router(context: BuildContext) -> None:
    write_demo_router(
        context.folder / "router",
        base_dir=context.base_dir,
        model=load_model(context.base_dir),
        num_tokens=context.plan.num_base_row_tokens,
        seed=context.seed,
    )


def _graph(context: BuildContext) -> None:
    def report(progress: TrainingProgress) -> None:
        context.advance(progress.step, max(progress.total_steps, 1), f"loss {progress.loss:.3f}")

    write_demo_graph(context.folder, seed=context.seed, on_progress=report)


def _calibration(context: BuildContext) -> None:
    def report(progress: TrainingProgress) -> None:
        context.advance(progress.step, max(progress.total_steps, 1), progress.phase)

    num_items = context.plan.num_held_out_items
    write_demo_calibration(context.folder, num_items=num_items, seed=context.seed, on_progress=report)


def _model_card(context: BuildContext) -> None:
    write_model_card(context.folder, seed=context.seed, plan=context.plan)


STAGES: tuple[Stage, ...] = (
    Stage("tokenizer", _tokenizer, ("base/tokenizer.json", "base/tokenizer_config.json")),
    Stage("base", _base, ("base/config.json", "base/model.safetensors", "corpus.json")),
    *(_expert_stage(domain) for domain in DEMO_DOMAINS),
    Stage("matrix", _matrix, ("matrix.json",)),
    Stage("router", _router, ("router/router.json", "router/base_evidence/bigram.safetensors")),
    Stage("graph", _graph, ("graph/graph.json", "graph/graph.safetensors", "graph/report.json")),
    Stage("calibration", _calibration, ("calibration/calibration.json",)),
    # Further stages (a learned router, say) go here: they need base and experts, and come before the card.
    Stage("card", _model_card, ("MODEL_CARD.md",)),
)
