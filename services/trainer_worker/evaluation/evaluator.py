"""Reads held-out text under a release and under everything that it is compared with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.gating import Gate
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.vocabulary import GateType
from services.trainer_worker.evaluation.figures import experts_per_token
from services.trainer_worker.evaluation.held_out import HeldOutText
from services.trainer_worker.evaluation.release_figures import (
    BASE_ALONE,
    ORACLE,
    ROUTED,
    UNIFORM,
    Figures,
    PartReadings,
    SeedReadings,
    gate_figures,
    newcomer_figures,
    over_seeds,
    seed_figures,
    unknown_figures,
)
from services.trainer_worker.evaluation.staged_reading import StagedReading, num_batches
from services.trainer_worker.evaluation.systems import (
    Weigh,
    constant,
    gated,
    oracle,
    routed,
    scores_of,
    with_silent_column,
)
from services.trainer_worker.evaluation.windows import Windows, switching_windows, whole_windows
from services.trainer_worker.progress import TrainingProgress
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble


@dataclass(frozen=True)
class Subject:
    """A release as the trainer loads it; `experts` are (name, folder) in the order of its gate's columns."""

    base: LoadedBase
    experts: Sequence[tuple[str, Path]]
    router_dir: Path
    graph_dir: Path | None

    def scorer(self, *, without: str | None = None) -> ReleaseScorer:
        """Its router; without one of its experts, as a release without that one would have it."""
        return ReleaseScorer.load(
            router_dir=self.router_dir,
            graph_dir=self.graph_dir,
            experts=[(name, folder) for name, folder in self.experts if name != without],
            vocab_size=self.base.tokenizer.vocab_size,
        )


@dataclass(frozen=True)
class Documents:
    """What is read: per seed, whole documents and such that switch (None: one domain); and text of no expert."""

    whole: Mapping[int, Windows]
    switching: Mapping[int, Windows | None]
    unknown: Windows | None

    @classmethod
    def draw(cls, text: HeldOutText, spec: EvaluationJobSpec, *, length: int, num_experts: int) -> "Documents":
        """Documents of at most `length` tokens; raises InvalidDataset where there is too little text."""
        whole = {
            seed: whole_windows(text.streams, text.columns, num_per_domain=spec.max_documents, length=length, seed=seed)
            for seed in spec.seeds
        }
        switching = {
            seed: switching_windows(
                text.streams, text.columns, num_documents=spec.max_switching_documents, half=length // 2, seed=seed
            )
            if len(text.domains) > 1
            else None
            for seed in spec.seeds
        }
        unknown = None
        if text.unknown is not None:
            unknown = whole_windows(
                [text.unknown], [num_experts], num_per_domain=spec.max_documents, length=length, seed=spec.seeds[0]
            )
        return cls(whole, switching, unknown)


def evaluate(
    subject: Subject,
    text: HeldOutText,
    spec: EvaluationJobSpec,
    *,
    folder: Path,
    on_progress: Callable[[TrainingProgress], None],
    should_stop: Callable[[], bool],
) -> Figures:
    """All figures as plain values. Goes on from what an interrupted evaluation of the same left in `folder`."""
    length = min(spec.max_tokens, subject.base.max_context)
    documents = Documents.draw(text, spec, length=length, num_experts=len(subject.experts))
    with ExpertEnsemble.load(subject.base, subject.experts) as ensemble:
        reading = StagedReading(
            ensemble,
            folder,
            total_steps=_num_batches(documents, text, spec, num_experts=len(subject.experts)),
            on_progress=on_progress,
            should_stop=should_stop,
        )
        return _Evaluator(subject, text, spec, reading).figures(documents)


class _Evaluator:
    """Has everything read that the figures need, each system once."""

    def __init__(self, subject: Subject, text: HeldOutText, spec: EvaluationJobSpec, reading: StagedReading) -> None:
        self._subject = subject
        self._text = text
        self._spec = spec
        self._reading = reading
        self._names = [name for name, _ in subject.experts]
        self._scorer = subject.scorer()

    def figures(self, documents: Documents) -> Figures:
        """Seed by seed; the sweep and the newcomers on the first seed's documents."""
        readings = [self._seed(seed, whole, documents.switching[seed]) for seed, whole in documents.whole.items()]
        domains = self._text.domains
        seeds = [seed_figures(one, domains) for one in readings]
        return {
            "domains": {
                domain: self._names[column] for domain, column in zip(domains, self._text.columns, strict=True)
            },
            "documents": {str(seed): whole.digest for seed, whole in documents.whole.items()},
            "gate": gate_figures(self._scorer.gate),
            "losses": {
                domain: float(np.mean([seed["systems"][ROUTED]["domains"][domain] for seed in seeds]))
                for domain in domains
            },
            "over_seeds": over_seeds(seeds),
            "seeds": seeds,
            "sweep": self._sweep(readings[0]),
            "newcomers": self._newcomers(readings[0]) if self._spec.without_each and len(self._names) > 1 else {},
            "unknown": self._unknown(documents.unknown) if documents.unknown is not None else None,
        }

    def _seed(self, seed: int, whole: Windows, switching: Windows | None) -> SeedReadings:
        systems = _fixed_systems(self._names)
        return SeedReadings(
            seed,
            self._part(f"{seed}-whole", whole, systems),
            self._part(f"{seed}-switching", switching, systems) if switching is not None else None,
        )

    def _part(self, stage: str, windows: Windows, systems: Mapping[str, Weigh]) -> PartReadings:
        scores_BTC = scores_of(self._scorer, self._subject.base, windows)
        every = {**systems, ROUTED: lambda _: gated(self._scorer, scores_BTC)}
        readings = {name: self._reading.read(stage, name, windows, weigh) for name, weigh in every.items()}
        return PartReadings(windows, scores_BTC, readings)

    def _sweep(self, readings: SeedReadings) -> list[Figures]:
        """Quality against computation: the release's scores under other gates."""
        return [self._under_gate(name, gate, readings) for name, gate in self._gates().items()]

    def _gates(self) -> dict[str, Gate]:
        gate = self._scorer.gate
        thresholds = {
            f"threshold {value:g}": replace(gate, gate_type=GateType.THRESHOLD, threshold=value)
            for value in self._spec.thresholds
        }
        return thresholds | {
            f"top-k {k}": replace(gate, gate_type=GateType.TOPK, max_experts=k) for k in self._spec.top_ks
        }

    def _under_gate(self, name: str, gate: Gate, readings: SeedReadings) -> Figures:
        scorer = self._scorer.with_gate(gate)
        row: Figures = {"gate": name, **gate_figures(gate)}
        for part_name, part in readings.parts.items():
            stage = f"{readings.seed}-{part_name}"
            weights_BTE = gated(scorer, part.scores_BTC)
            one = self._reading.read(stage, name, part.windows, _given(weights_BTE))
            row[part_name] = {
                "loss": part.loss(one, by_domain=part_name == "whole"),
                "experts_per_token": experts_per_token(one, part.windows),
                "tokens_per_s": one.tokens_per_s,
            }
        return row

    def _newcomers(self, readings: SeedReadings) -> Figures:
        """Each expert with text is taken out, as if the release had never had it, and added back."""
        without = {}
        for index, column in enumerate(self._text.columns):
            name = self._names[column]
            smaller = routed(self._subject.scorer(without=name), self._subject.base)
            weigh = with_silent_column(smaller, column)
            stage = f"{readings.seed}-whole"
            without[index] = self._reading.read(stage, f"without {name}", readings.whole.windows, weigh)
        return newcomer_figures(readings.whole, without, self._text.domains)

    def _unknown(self, windows: Windows) -> Figures:
        systems = _fixed_systems(self._names)
        return unknown_figures(self._part("unknown", windows, {name: systems[name] for name in (BASE_ALONE, UNIFORM)}))


def _fixed_systems(names: Sequence[str]) -> dict[str, Weigh]:
    """The systems that do not look at the text, and the oracle, which knows it."""
    number = len(names)
    singles = {
        f"expert {name}": constant([float(column == index) for column in range(number)])
        for index, name in enumerate(names)
    }
    return {
        BASE_ALONE: constant([0.0] * number),
        **singles,
        UNIFORM: constant([1.0 / number] * number),
        ORACLE: oracle(number),
    }


def _given(weights_BTE: Tensor) -> Weigh:
    return lambda _: weights_BTE


def _num_batches(documents: Documents, text: HeldOutText, spec: EvaluationJobSpec, *, num_experts: int) -> int:
    whole = {seed: num_batches(windows) for seed, windows in documents.whole.items()}
    switching = {seed: num_batches(windows) for seed, windows in documents.switching.items()}
    first = spec.seeds[0]
    num_systems = num_experts + 4
    num_gates = len(spec.thresholds) + len(spec.top_ks)
    total = num_systems * (sum(whole.values()) + sum(switching.values()))
    total += num_gates * (whole[first] + switching[first]) + 3 * num_batches(documents.unknown)
    return total + (len(text.domains) * whole[first] if spec.without_each and num_experts > 1 else 0)
