"""The demo's cooperation graph with its controls: trained over the demo's own router and experts (DESIGN D4)."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from services.shared.config import RouterSettings, Settings
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.router_artifact import BIGRAM_FILE, EVIDENCE_FOLDER
from services.shared.training_text import Example, read_examples
from services.trainer_worker.demo.experts import EXEMPLARS
from services.trainer_worker.progress import TrainingProgress
from services.trainer_worker.training.cooperation_graph import train_cooperation_graph
from services.trainer_worker.training.graph_plan import GraphPlan
from services.trainer_worker.training.graph_report import GraphReport

GRAPH_REPORT: Final = "report.json"
_LENGTH: Final = 96
"""Tokens; the demo's documents have about fifty."""


def write_demo_graph(
    demo_dir: Path,
    *,
    seed: int,
    on_progress: Callable[[TrainingProgress], None],
    plan: GraphPlan | None = None,
) -> GraphReport:
    """Write `graph/` with a report on all controls; the graph is enabled only if it beats them.

    Needs `base/`, `experts/` with exemplars, and `router/`. Half of the exemplars make the evidence, the other half is
    what the graph is trained and judged on.
    """
    base = load_base_model(Settings(base_model=str(demo_dir / "base"), device="cpu"))
    texts = _exemplars(demo_dir)
    with tempfile.TemporaryDirectory() as scratch:
        experts = [(name, Path(scratch) / name) for name in texts]
        for name, folder in experts:
            shutil.copytree(demo_dir / "experts" / name, folder)
            _write_evidence(base, texts[name][::2], folder)
        report = train_cooperation_graph(
            base=base,
            experts=experts,
            scorer=ReleaseScorer.load(
                router_dir=demo_dir / "router",
                graph_dir=None,
                experts=experts,
                vocab_size=base.tokenizer.vocab_size,
            ),
            max_experts=RouterSettings().max_experts_per_token,
            texts={name: examples[1::2] for name, examples in texts.items()},
            plan=plan or GraphPlan(length=_LENGTH, seeds=tuple(range(seed, seed + 5))),
            on_progress=on_progress,
            should_stop=lambda: False,
        )
    note = "beats its controls" if report.beats_controls else "does not beat its controls, so it is off"
    report.graph.save(demo_dir / "graph", enabled=report.beats_controls, note=note)
    (demo_dir / "graph" / GRAPH_REPORT).write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return report


def _exemplars(demo_dir: Path) -> Mapping[str, list[Example]]:
    """The experts' own texts by name, in name order."""
    files = sorted(demo_dir.glob(f"experts/*/{EXEMPLARS}"))
    return {file.parent.name: read_examples(file, filename=file.name) for file in files}


def _write_evidence(base: LoadedBase, examples: list[Example], folder: Path) -> None:
    streams = base.tokenizer.encode_batch([example.text for example in examples])
    evidence = build_bigram_evidence(streams, base.tokenizer.vocab_size)
    evidence.save(folder / EVIDENCE_FOLDER / BIGRAM_FILE)
