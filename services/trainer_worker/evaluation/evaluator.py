"""Reads held-out text under a release and under everything that it is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from torch import Tensor

from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.trainer_worker.evaluation.documents import Documents
from services.trainer_worker.evaluation.figures import experts_per_token, token_accuracy
from services.trainer_worker.evaluation.peers import NOBODYS, PeerMaker
from services.trainer_worker.evaluation.release_figures import (
    AS_RELEASED,
    BASE_ALONE,
    ORACLE,
    ROUTED,
    UNIFORM,
    Figures,
    PartReadings,
    SeedReadings,
    evidence_figures,
    filter_figures,
    gate_figures,
    newcomer_figures,
    over_seeds,
    seed_figures,
    systems_over_seeds,
    unknown_figures,
)
from services.trainer_worker.evaluation.staged_reading import StagedReading
from services.trainer_worker.evaluation.study import Study
from services.trainer_worker.evaluation.sweep import evidences, filters, gates
from services.trainer_worker.evaluation.systems import (
    Readings,
    Weigh,
    constant,
    gated,
    oracle,
    routed,
    scores_of,
    with_silent_column,
)
from services.trainer_worker.evaluation.windows import Windows
from services.trainer_worker.progress import RunControl
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble


@dataclass(frozen=True)
class PeerReadings:
    """What peers made of the documents, by stage and name, and how each was made."""

    by_stage: Mapping[str, Mapping[str, Readings]]
    about: Sequence[str]


def evaluate(study: Study, run: RunControl) -> Figures:
    """All figures as plain values. Goes on from what an interrupted evaluation of the same left in the run's folder."""
    subject, text, spec = study.subject, study.text, study.spec
    length = min(spec.max_tokens, subject.base.max_context)
    num_experts = len(subject.experts)
    documents = Documents.draw(text, spec, length=length, num_experts=num_experts)
    scorer = subject.scorer()
    num_routers = len(filters(scorer.bayes_filter, spec)) + len(evidences(scorer.bayes, study.trunk_rows, spec))
    num_steps = documents.num_steps(
        spec, num_experts=num_experts, num_domains=len(text.domains), num_routers=num_routers
    )
    reading = StagedReading(run.within("readings"), total_steps=num_steps)
    peers = _read_peers(PeerMaker(study, run.within("peers")), spec, documents, reading)
    with ExpertEnsemble.load(subject.base, subject.experts) as ensemble:
        return _Evaluator(study, scorer, ensemble, reading, peers).figures(documents)


def _read_peers(
    maker: PeerMaker, spec: EvaluationJobSpec, documents: Documents, reading: StagedReading
) -> PeerReadings:
    """One after the other, so that no two of their models are in memory at once; those that have read are not made."""
    by_stage: dict[str, dict[str, Readings]] = {stage: {} for seed in spec.seeds for stage in documents.stages(seed)}
    kinds = {name: maker.kind(name) for name in spec.peers}
    for name, kind in kinds.items():
        for seed, read_by_it in _in_turn(kind.seeds or spec.seeds[:1], spec.seeds).items():
            peer = cache(partial(maker.make, name, seed))
            for stage, windows in (one for drawn in read_by_it for one in documents.stages(drawn).items()):
                by_stage[stage][kind.name] = reading.read(peer, stage, name, windows, NOBODYS)
            del peer  # before the next is made
    return PeerReadings(by_stage, [kind.about for kind in kinds.values()])


def _in_turn(seeds: Sequence[int], drawn: Sequence[int]) -> dict[int, list[int]]:
    """Which seeds' documents are read by the peer of which seed."""
    return {seed: list(drawn[place :: len(seeds)]) for place, seed in enumerate(seeds)}


class _Evaluator:
    """Has everything read that the figures need, each system once."""

    def __init__(
        self,
        study: Study,
        scorer: ReleaseScorer,
        ensemble: ExpertEnsemble,
        reading: StagedReading,
        peers: PeerReadings,
    ) -> None:
        self._study = study
        self._subject = study.subject
        self._text = study.text
        self._spec = study.spec
        self._scorer = scorer
        self._ensemble = ensemble
        self._reading = reading
        self._peers = peers
        self._names = [name for name, _ in study.subject.experts]

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
            "filter": filter_figures(own) if (own := self._scorer.bayes_filter) is not None else None,
            "peers": list(self._peers.about),
            "losses": {
                domain: float(np.mean([seed["systems"][ROUTED]["domains"][domain] for seed in seeds]))
                for domain in domains
            },
            "over_seeds": over_seeds(seeds),
            "systems_over_seeds": systems_over_seeds(readings),
            "seeds": seeds,
            "sweep": self._gate_sweep(readings[0]),
            "filter_sweep": self._filter_sweep(readings[0]),
            "evidence_sweep": self._evidence_sweep(readings[0]),
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
        readings = {name: self._read(stage, name, windows, weigh) for name, weigh in every.items()}
        return PartReadings(windows, scores_BTC, {**readings, **self._peers.by_stage.get(stage, {})})

    def _read(self, stage: str, name: str, windows: Windows, weigh: Weigh) -> Readings:
        return self._reading.read(lambda: self._ensemble, stage, name, windows, weigh)

    def _gate_sweep(self, readings: SeedReadings) -> list[Figures]:
        """Quality against computation: the release's scores under other gates."""
        rows = []
        for name, gate in gates(self._scorer.gate, self._spec).items():
            scorer = self._scorer.with_gate(gate)
            row = {"gate": name, **gate_figures(gate)}
            for part_name, part in readings.parts.items():
                row[part_name] = self._variant(readings, part_name, name, gated(scorer, part.scores_BTC))
            rows.append(row)
        return rows

    def _filter_sweep(self, readings: SeedReadings) -> list[Figures]:
        """The release's evidence under its own filter, then under filters of other constants."""
        own = self._scorer.bayes_filter
        if own is None:
            return []
        rows = [{"filter": AS_RELEASED, **filter_figures(own), **self._as_released(readings)}]
        for name, bayes_filter in filters(own, self._spec).items():
            rescored = self._rescored(readings, name, self._scorer.with_filter(bayes_filter))
            rows.append({"filter": name, **filter_figures(bayes_filter), **rescored})
        return rows

    def _evidence_sweep(self, readings: SeedReadings) -> list[Figures]:
        """The release's filter over its own evidence, then over other kinds, sums and taps."""
        own = self._scorer.bayes
        if own is None:
            return []
        rows = [{"evidence": AS_RELEASED, **evidence_figures(own), **self._as_released(readings)}]
        for name, scores in evidences(own, self._study.trunk_rows, self._spec).items():
            rescored = self._rescored(readings, name, self._scorer.with_evidence(scores))
            rows.append({"evidence": name, **evidence_figures(scores), **rescored})
        return rows

    def _as_released(self, readings: SeedReadings) -> Figures:
        return {
            name: self._cost_and_loss(part, part.systems[ROUTED], by_domain=name == "whole")
            for name, part in readings.parts.items()
        }

    def _rescored(self, readings: SeedReadings, variant: str, scorer: ReleaseScorer) -> Figures:
        """Under a router that gives other scores."""
        return {
            name: self._variant(
                readings, name, variant, gated(scorer, scores_of(scorer, self._subject.base, part.windows))
            )
            for name, part in readings.parts.items()
        }

    def _variant(self, readings: SeedReadings, part_name: str, name: str, weights_BTE: Tensor) -> Figures:
        part = readings.parts[part_name]
        one = self._read(f"{readings.seed}-{part_name}", name, part.windows, _given(weights_BTE))
        return self._cost_and_loss(part, one, by_domain=part_name == "whole")

    def _cost_and_loss(self, part: PartReadings, one: Readings, *, by_domain: bool) -> Figures:
        return {
            "loss": part.loss(one, by_domain=by_domain),
            "agreement": token_accuracy(one, part.windows),
            "experts_per_token": experts_per_token(one, part.windows),
            "tokens_per_s": one.tokens_per_s,
        }

    def _newcomers(self, readings: SeedReadings) -> Figures:
        """Each expert with text is taken out, as if the release had never had it, and added back."""
        without = {}
        for index, column in enumerate(self._text.columns):
            name = self._names[column]
            smaller = routed(self._subject.scorer(without=[name]), self._subject.base)
            weigh = with_silent_column(smaller, column)
            stage = f"{readings.seed}-whole"
            without[index] = self._read(stage, f"without {name}", readings.whole.windows, weigh)
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
