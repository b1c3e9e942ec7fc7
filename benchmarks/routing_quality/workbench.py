"""The base model, the domains, and everything trained on them for one seed."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.routing_quality.experts import (
    MULTI_TASK,
    RANK,
    TAP_LAYER,
    generic_text,
    train_adapter,
    write_evidence,
)
from benchmarks.routing_quality.texts import DomainText, read_domains
from services.shared.config import RouterSettings, Settings
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.router_artifact import (
    POSTERIOR_THRESHOLD,
    ROUTER_FILE,
    TRUNK_ALONE_WEIGHT,
    read_router_file,
    write_bayes_router,
)
from services.shared.modeling.trunk import gather_trunk_statistics
from services.shared.schemas.jobs import RouterHyperparameters
from services.shared.training_text import Example
from services.shared.vocabulary import EvidenceKind, GateType, RouterKind
from services.trainer_worker.training.cooperation_graph import train_cooperation_graph
from services.trainer_worker.training.graph_plan import GraphPlan
from services.trainer_worker.training.graph_report import GraphReport
from services.trainer_worker.training.router import RouterTraining, train_learned_router

ROUTED = "routed: Bayes over bigrams"
TRUNK = "routed: Bayes over trunk states"
BOTH = "routed: Bayes over both"
LEARNED = "routed: learned network"
LEARNED_FILTERED = "routed: learned network, filtered"
ROUTERS = {ROUTED: "bigram", TRUNK: "trunk", BOTH: "both", LEARNED: "learned/router", LEARNED_FILTERED: "filtered"}


@dataclass(frozen=True)
class Scale:
    """How much is trained and read."""

    expert_steps: int = 300
    router_steps: int = 150
    num_per_domain: int = 48
    num_switching: int = 120
    graph: GraphPlan | None = None


class Workbench:
    """The base model, the domains and everything trained on them for one seed, in one folder."""

    def __init__(self, base_model: Path, texts: Path, folder: Path, *, seed: int, scale: Scale) -> None:
        self.base: LoadedBase = load_base_model(Settings(base_model=str(base_model), device="cpu"))
        self.domains = read_domains(texts, seed=seed)
        self.folder = folder / f"seed{seed}"
        self.seed = seed
        self.scale = scale
        self.adapters: list[tuple[str, Path]] = []

    @property
    def names(self) -> list[str]:
        """The experts, in the order of the columns."""
        return [domain.name for domain in self.domains]

    def train_experts(self, say: Callable[[str], None]) -> None:
        """One adapter per domain, with its evidence."""
        self.generic = generic_text(self.base)
        for domain in self.domains:
            say(f"seed {self.seed}: expert {domain.name}")
            adapter_dir = self._adapter(domain.name, [domain], steps=self.scale.expert_steps, rank=RANK)
            write_evidence(adapter_dir, domain.train, self.base, self.generic)
            self.adapters.append((domain.name, adapter_dir))

    def train_multi_task(self) -> Path:
        """One adapter on all domains: rank and tokens are those of all experts together."""
        number = len(self.domains)
        return self._adapter(MULTI_TASK, self.domains, steps=number * self.scale.expert_steps, rank=number * RANK)

    def _adapter(self, name: str, domains: Sequence[DomainText], *, steps: int, rank: int) -> Path:
        return train_adapter(
            name,
            domains,
            base_model=self.base.name,
            num_steps=steps,
            rank=rank,
            seed=self.seed,
            folder=self.folder,
        )

    def write_bayes_routers(self) -> None:
        """The default router and those on trunk states, as artifacts."""
        evidence = build_bigram_evidence(self.generic, self.base.tokenizer.vocab_size)
        trunk = gather_trunk_statistics(self.base.model, self.generic, tap_layer=TAP_LAYER)
        write_bayes_router(self.folder / "bigram", settings=RouterSettings(), base_evidence=evidence)
        write_bayes_router(self.folder / "both", settings=RouterSettings(), base_evidence=evidence, base_trunk=trunk)
        write_bayes_router(
            self.folder / "trunk",
            settings=RouterSettings(),
            base_evidence=evidence,
            base_trunk=trunk,
            evidence_weights={EvidenceKind.TRUNK: TRUNK_ALONE_WEIGHT},
        )

    def train_router(self) -> RouterTraining:
        """The requirements' router: sigmoid scores over a threshold, on trunk states, with a little label loss."""
        settings = RouterSettings(
            kind=RouterKind.LEARNED, router_type=GateType.THRESHOLD, tap_layer=TAP_LAYER, expert_label_weight=0.1
        )
        training = train_learned_router(
            base=self.base,
            experts=self.adapters,
            texts={domain.name: [Example(text, None) for text in domain.train] for domain in self.domains},
            settings=settings,
            hyperparameters=RouterHyperparameters(
                num_steps=self.scale.router_steps, learning_rate=3e-3, seed=self.seed
            ),
            output_dir=self.folder / "learned",
            on_progress=lambda progress: None,
            should_stop=lambda: False,
        )
        self._write_filtered(training.router_dir)
        return training

    def _write_filtered(self, router_dir: Path) -> None:
        target = self.folder / "filtered"
        shutil.copytree(router_dir, target, dirs_exist_ok=True)
        update = {"filtered": True, "expert_selection_threshold": POSTERIOR_THRESHOLD}
        router = read_router_file(router_dir).model_copy(update=update)
        (target / ROUTER_FILE).write_text(router.model_dump_json())

    def scorer(self, router: str, *, without: str | None = None) -> ReleaseScorer:
        """A release of these experts under one of the routers."""
        return ReleaseScorer.load(
            router_dir=self.folder / router,
            graph_dir=None,
            experts=[(name, folder) for name, folder in self.adapters if name != without],
            vocab_size=self.base.tokenizer.vocab_size,
        )

    def train_graph(self, plan: GraphPlan) -> GraphReport:
        """A cooperation graph on top of the default router, with its controls."""
        return train_cooperation_graph(
            base=self.base,
            experts=self.adapters,
            scorer=self.scorer("bigram"),
            max_experts=4,
            texts={domain.name: [Example(text, None) for text in domain.validation] for domain in self.domains},
            plan=plan,
            on_progress=lambda progress: None,
            should_stop=lambda: False,
        )
