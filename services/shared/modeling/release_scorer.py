"""The router of one release, as both services run it: tokens in, scores and weights per column out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from services.shared.errors import InvalidRequest
from services.shared.modeling.bayes_filter import BayesFilter
from services.shared.modeling.bigram_evidence import BigramEvidence, BigramEvidenceStack
from services.shared.modeling.column_scores import BayesScores, ColumnScores, FilterState, LearnedScores, TrunkStates
from services.shared.modeling.cooperation_graph import CooperationGraph
from services.shared.modeling.evidence_file import InvalidEvidence
from services.shared.modeling.gating import Gate
from services.shared.modeling.learned_gate import LearnedGate
from services.shared.modeling.router_artifact import (
    BASE_FOLDER,
    BIGRAM_FILE,
    EVIDENCE_FOLDER,
    NETWORK_FILE,
    TRUNK_FILE,
    RouterFile,
    read_router_file,
)
from services.shared.modeling.size_correction import correction
from services.shared.modeling.trunk_evidence import DiscriminantRows
from services.shared.modeling.trunk_statistics import TrunkStatistics
from services.shared.vocabulary import BASE, EvidenceKind, RouterKind

Floats = npt.NDArray[np.float64]

_MOST_NEWCOMERS: Final = 8
"""Beyond so many at once, reading everything anew is no slower."""


class ReleaseScorer:
    """Immutable and thread-safe; made once per (router, graph, experts).

    Gates follow from the text and the release alone: never from which adapters are resident, from the batch or
    from the replica. With bigram evidence `advance` and `advance_batch` give the same bits; where trunk
    states are used, the same numbers to 1e-9.
    """

    def __init__(
        self,
        *,
        columns: tuple[str, ...],
        scores: ColumnScores,
        gate: Gate,
        graph: CooperationGraph | None,
        vocab_size: int,
        tap_layer: int | None,
    ) -> None:
        self.columns = columns
        self.tap_layer = tap_layer
        self._scores = scores
        self._gate = gate
        self._graph = graph
        self._vocab_size = vocab_size
        self._origin: _Origin | None = None

    @classmethod
    def load(
        cls,
        *,
        router_dir: Path,
        graph_dir: Path | None,
        experts: Sequence[tuple[str, Path]],
        vocab_size: int,
        like: "ReleaseScorer | None" = None,
    ) -> "ReleaseScorer":
        """Read a release's router, graph and evidence; `experts` are (name, expert version folder) in plan order.

        Folders are immutable, so where `like` has the same router and all experts but the last few, only those are
        read: a newcomer costs the same however many there are. Raises InvalidEvidence (400) when one is damaged, or
        when an expert has no evidence and the router needs it.
        """
        router = read_router_file(router_dir)
        names = tuple(name for name, _ in experts)
        scores: ColumnScores
        if router.kind == RouterKind.BAYES:
            scores = _extended(like, router, router_dir, experts, vocab_size) or _load_bayes_scores(
                router, router_dir, experts, vocab_size
            )
        else:
            scores = _load_learned_scores(router, router_dir, names)
        scorer = cls(
            columns=(*names, BASE),
            scores=scores,
            gate=router.gate,
            graph=CooperationGraph.load(graph_dir).over(names) if graph_dir else None,
            vocab_size=vocab_size,
            tap_layer=router.tap_layer,
        )
        scorer._origin = _Origin(router_dir, tuple(experts))
        return scorer

    def newcomers(self, router_dir: Path, experts: Sequence[tuple[str, Path]]) -> Sequence[tuple[str, Path]] | None:
        """The experts that this scorer lacks, if it knows all before them, by the same router; else None."""
        if self._origin is None or self._origin.router_dir != router_dir:
            return None
        num_known = len(self._origin.experts)
        return experts[num_known:] if tuple(experts[:num_known]) == self._origin.experts else None

    @property
    def gate(self) -> Gate:
        """Which scores it keeps."""
        return self._gate

    @property
    def bayes(self) -> BayesScores | None:
        """The filter and the evidence that it reads; None where a learned network gives the scores."""
        return self._scores if isinstance(self._scores, BayesScores) else None

    @property
    def bayes_filter(self) -> BayesFilter | None:
        """The filter that its scores come from; None for a learned router without one."""
        return self._scores.bayes_filter

    def with_gate(self, gate: Gate) -> "ReleaseScorer":
        """The same scores and graph under another gate."""
        return self._with(self._scores, gate, self.tap_layer)

    def with_filter(self, bayes_filter: BayesFilter) -> "ReleaseScorer":
        """The same evidence, gate and graph under a filter with other constants."""
        return self._with(replace(self._scores, bayes_filter=bayes_filter), self._gate, self.tap_layer)

    def with_evidence(self, scores: BayesScores) -> "ReleaseScorer":
        """The same gate and graph over other evidence of the same columns."""
        return self._with(scores, self._gate, scores.rows.tap_layer if scores.rows else None)

    def _with(self, scores: ColumnScores, gate: Gate, tap_layer: int | None) -> "ReleaseScorer":
        return ReleaseScorer(
            columns=self.columns,
            scores=scores,
            gate=gate,
            graph=self._graph,
            vocab_size=self._vocab_size,
            tap_layer=tap_layer,
        )

    def start(self) -> FilterState:
        """The state of a sequence before its first token."""
        return self._scores.start()

    def advance(
        self, state: FilterState, token_ids: Sequence[int], trunk_states_TD: TrunkStates | None = None
    ) -> Floats:
        """Scores after each of these tokens, float64 [T, E+1], columns in the order of `columns`; updates `state`.

        Row t is what predicts the token after t. Cutting a text into several calls changes nothing.
        """
        token_ids_T = self._checked(token_ids, trunk_states_TD)
        if not len(token_ids_T):
            return np.empty((0, len(self.columns)))
        return self._scores.advance(state, token_ids_T, trunk_states_TD)

    def advance_with_evidence(self, state: FilterState, token_ids: Sequence[int]) -> tuple[Floats, Floats | None]:
        """Scores as `advance` gives them, and the log-evidence that a Bayes filter was told, [T, E+1] each.

        Of releases that read no hidden states; the evidence is None where a learned network gives the scores.
        """
        return self._scores.advance_with_evidence(state, self._checked(token_ids, None), None)

    def advance_batch(
        self, states: Sequence[FilterState], token_ids: Sequence[int], trunk_states_BD: TrunkStates | None = None
    ) -> Floats:
        """One more token for each of B sequences: scores, float64 [B, E+1]; updates the states."""
        token_ids_B = self._checked(token_ids, trunk_states_BD)
        if not states:
            return np.empty((0, len(self.columns)))
        return self._scores.advance_batch(states, token_ids_B, trunk_states_BD)

    def weights(self, scores_TC: Floats, candidates: Sequence[str] | None = None) -> npt.NDArray[np.float32]:
        """Gate weights, float32 [T, E+1], rows summing to 1: kept by the gate, passed through the graph.

        Only `candidates` (default: all experts) may be kept; the base always may.
        """
        allowed_C = None
        if candidates is not None:
            chosen = {*candidates, BASE}
            allowed_C = np.array([name in chosen for name in self.columns])
        weights_TC = self._gate.weigh(scores_TC, allowed_C)
        if self._graph is not None:
            weights_TC = self._graph.apply(weights_TC, max_experts=self._gate.max_experts, allowed_C=allowed_C)
        return weights_TC.astype(np.float32)

    def _checked(self, token_ids: Sequence[int], trunk_states_ND: TrunkStates | None) -> npt.NDArray[np.int64]:
        token_ids_N = np.asarray(token_ids, dtype=np.int64)
        if len(token_ids_N) and (token_ids_N.min() < 0 or token_ids_N.max() >= self._vocab_size):
            raise InvalidRequest(f"Token ids must lie in 0..{self._vocab_size - 1}.", param="inputs")
        if self.tap_layer is not None and (trunk_states_ND is None or len(trunk_states_ND) != len(token_ids_N)):
            raise ValueError(f"this release's router needs one hidden state of layer {self.tap_layer} per token")
        return token_ids_N


@dataclass(frozen=True)
class _Origin:
    """What a scorer was read from."""

    router_dir: Path
    experts: tuple[tuple[str, Path], ...]


def _extended(
    like: ReleaseScorer | None,
    router: RouterFile,
    router_dir: Path,
    experts: Sequence[tuple[str, Path]],
    vocab_size: int,
) -> BayesScores | None:
    """The scores of `like` with the newcomers among `experts`; None where all must be read."""
    newcomers = like.newcomers(router_dir, experts) if like else None
    scores = like._scores if like else None
    if newcomers is None or len(newcomers) > _MOST_NEWCOMERS or not isinstance(scores, BayesScores) or scores.rows:
        return None
    for name, folder in newcomers:
        table = _load_bigrams(name, folder / EVIDENCE_FOLDER, vocab_size)
        scores = scores.with_newcomer(table, correction(router.size_curve, table.num_tokens))
    return scores


def _load_bayes_scores(
    router: RouterFile, router_dir: Path, experts: Sequence[tuple[str, Path]], vocab_size: int
) -> BayesScores:
    folders = [(name, folder / EVIDENCE_FOLDER) for name, folder in experts]
    folders.append((BASE, router_dir / BASE_FOLDER))
    tables = [_load_bigrams(name, folder, vocab_size) for name, folder in folders]
    corrections = [correction(router.size_curve, table.num_tokens) for table in tables]
    uses_trunk = EvidenceKind.TRUNK in router.evidence_weights
    return BayesScores(
        bayes_filter=BayesFilter(len(folders), router.stickiness, router.temper),
        bigrams=BigramEvidenceStack(tables, corrections),
        bigram_weight=router.evidence_weights.get(EvidenceKind.BIGRAM, 0.0),
        rows=DiscriminantRows.of([_load_statistics(*named, router) for named in folders]) if uses_trunk else None,
        trunk_weight=router.evidence_weights.get(EvidenceKind.TRUNK, 0.0),
    )


def _load_learned_scores(router: RouterFile, router_dir: Path, names: tuple[str, ...]) -> LearnedScores:
    unknown = [name for name in names if name not in router.experts]
    if unknown:
        raise InvalidRequest(
            f"The learned router was not trained for {', '.join(unknown)}: run a router job over these experts, "
            "or use a bayes router, which takes newcomers as they are.",
            param="experts",
        )
    positions = [router.experts.index(name) for name in names]
    network = LearnedGate.load(router_dir / NETWORK_FILE)
    if len(network.score_bias_C) != len(router.experts) + 1 or router.hidden_size is None:
        raise InvalidEvidence("router.safetensors does not fit router.json: train the router again.")
    num_columns = len(names) + 1
    return LearnedScores(
        network=network.select([*positions, len(router.experts)]),
        gate_type=router.router_type,
        hidden_size=router.hidden_size,
        num_columns=num_columns,
        bayes_filter=BayesFilter(num_columns, router.stickiness, router.temper) if router.filtered else None,
    )


def _load_bigrams(name: str, folder: Path, vocab_size: int) -> BigramEvidence:
    path = folder / BIGRAM_FILE
    if not path.exists():
        raise InvalidEvidence(_without_evidence(name, "bigram"), param="experts")
    evidence = BigramEvidence.load(path)
    if evidence.vocab_size != vocab_size:
        raise InvalidEvidence(
            f"The evidence of {name!r} was counted over {evidence.vocab_size} tokens, the base model has {vocab_size}: "
            "build it again with the base model's tokenizer.",
            param="experts",
        )
    return evidence


def _load_statistics(name: str, folder: Path, router: RouterFile) -> TrunkStatistics:
    path = folder / TRUNK_FILE
    if not path.exists():
        raise InvalidEvidence(_without_evidence(name, "trunk"), param="experts")
    statistics = TrunkStatistics.load(path)
    if (statistics.tap_layer, statistics.hidden_size) != (router.tap_layer, router.hidden_size):
        raise InvalidEvidence(
            f"The trunk evidence of {name!r} was gathered at another tap layer: build it again.", param="experts"
        )
    return statistics


def _without_evidence(name: str, kind: str) -> str:
    return (
        f"Expert {name!r} has no {kind} evidence, so the router cannot tell when it should speak: import it again with "
        "`exemplars` (texts of its domain), or leave it out of the release and name it per request with `adapter_id`."
    )
