"""Where a gate's scores come from: the Bayes filter over evidence, or a learned network. Both keep a FilterState."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from services.shared.modeling.bayes_filter import BayesFilter
from services.shared.modeling.bigram_evidence import BigramEvidence, BigramEvidenceStack
from services.shared.modeling.learned_gate import LearnedGate
from services.shared.modeling.smoothed_states import SmoothedStates
from services.shared.modeling.trunk_evidence import DiscriminantRows
from services.shared.vocabulary import GateType

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TrunkStates = npt.NDArray[np.floating]

NO_TOKEN = -1


@dataclass
class FilterState:
    """What the router remembers of one sequence; it travels with the KV cache."""

    posterior_C: Floats
    last_token: int = NO_TOKEN
    smoothed: SmoothedStates | None = None

    def copy(self) -> "FilterState":
        """An independent twin."""
        return FilterState(self.posterior_C.copy(), self.last_token, self.smoothed and self.smoothed.copy())


@dataclass(frozen=True)
class BayesScores:
    """The filter over a weighted sum of log-evidences (DESIGN D1). `rows` is None without trunk evidence."""

    bayes_filter: BayesFilter
    bigrams: BigramEvidenceStack
    bigram_weight: float = 1.0
    rows: DiscriminantRows | None = None
    trunk_weight: float = 0.0

    def with_newcomer(self, evidence: BigramEvidence, correction: float) -> "BayesScores":
        """The same with one more expert, before the base. Of scores without trunk evidence."""
        assert self.rows is None
        more = replace(self.bayes_filter, num_columns=self.bayes_filter.num_columns + 1)
        return replace(self, bayes_filter=more, bigrams=self.bigrams.with_newcomer(evidence, correction))

    def start(self) -> FilterState:
        """The state before any token."""
        smoothed = SmoothedStates.start(self.rows.hidden_size) if self.rows else None
        return FilterState(self.bayes_filter.start(), smoothed=smoothed)

    def advance(self, state: FilterState, token_ids_T: Ints, trunk_states_TD: TrunkStates | None) -> Floats:
        """Posteriors after each token of one sequence, [T, C]."""
        return self.advance_with_evidence(state, token_ids_T, trunk_states_TD)[0]

    def advance_with_evidence(
        self, state: FilterState, token_ids_T: Ints, trunk_states_TD: TrunkStates | None
    ) -> tuple[Floats, Floats | None]:
        """Posteriors after each token of one sequence and the log-evidence that they follow from, [T, C] each."""
        log_evidence_TC = self.log_evidence(state, token_ids_T, trunk_states_TD)
        posterior_TC = self.bayes_filter.advance(state.posterior_C, log_evidence_TC)
        state.posterior_C, state.last_token = posterior_TC[-1].copy(), int(token_ids_T[-1])
        return posterior_TC, log_evidence_TC

    def log_evidence(self, state: FilterState, token_ids_T: Ints, trunk_states_TD: TrunkStates | None) -> Floats:
        """What the filter is told of each token of one sequence, [T, C], nats; moves the state's moving averages."""
        previous_T = np.concatenate(([state.last_token], token_ids_T[:-1]))
        smoothed_TF = (
            state.smoothed.advance(trunk_states_TD) if state.smoothed and trunk_states_TD is not None else None
        )
        return self._log_evidence(previous_T, token_ids_T, smoothed_TF)

    def advance_batch(
        self, states: Sequence[FilterState], token_ids_B: Ints, trunk_states_BD: TrunkStates | None
    ) -> Floats:
        """Posteriors of B sequences after one more token each, [B, C]."""
        previous_B = np.array([state.last_token for state in states])
        smoothed_BF = _smooth_batch(states, trunk_states_BD) if self.rows and trunk_states_BD is not None else None
        log_evidence_BC = self._log_evidence(previous_B, token_ids_B, smoothed_BF)
        posterior_BC = np.stack([state.posterior_C for state in states])
        posterior_BC = self.bayes_filter.advance_batch(posterior_BC, log_evidence_BC)
        for state, posterior_C, token_id in zip(states, posterior_BC, token_ids_B, strict=True):
            state.posterior_C, state.last_token = posterior_C.copy(), int(token_id)
        return posterior_BC

    def _log_evidence(self, previous_N: Ints, next_N: Ints, smoothed_NF: Floats | None) -> Floats:
        log_evidence_NC = self.bigram_weight * self.bigrams.log_evidence(previous_N, next_N)
        if self.rows and smoothed_NF is not None:
            log_evidence_NC += self.trunk_weight * self.rows.log_evidence(smoothed_NF)
        return log_evidence_NC


@dataclass(frozen=True)
class LearnedScores:
    """A trained network on smoothed trunk states; with a filter, its log-scores are the evidence."""

    network: LearnedGate
    gate_type: GateType
    hidden_size: int
    num_columns: int
    bayes_filter: BayesFilter | None = None

    def start(self) -> FilterState:
        """The state before any token."""
        uniform_C = np.full(self.num_columns, 1.0 / self.num_columns)
        return FilterState(uniform_C, smoothed=SmoothedStates.start(self.hidden_size))

    def advance(self, state: FilterState, token_ids_T: Ints, trunk_states_TD: TrunkStates | None) -> Floats:
        """Scores after each token of one sequence, [T, C]."""
        assert state.smoothed is not None
        assert trunk_states_TD is not None
        scores_TC = self.network.scores(state.smoothed.advance(trunk_states_TD), self.gate_type)
        if self.bayes_filter:
            scores_TC = self.bayes_filter.advance(state.posterior_C, _log(scores_TC))
        state.posterior_C, state.last_token = scores_TC[-1].copy(), int(token_ids_T[-1])
        return scores_TC

    def advance_with_evidence(
        self, state: FilterState, token_ids_T: Ints, trunk_states_TD: TrunkStates | None
    ) -> tuple[Floats, Floats | None]:
        """The same, and None: a network weighs no evidence."""
        return self.advance(state, token_ids_T, trunk_states_TD), None

    def advance_batch(
        self, states: Sequence[FilterState], token_ids_B: Ints, trunk_states_BD: TrunkStates | None
    ) -> Floats:
        """Scores of B sequences after one more token each, [B, C]."""
        assert trunk_states_BD is not None
        scores_BC = self.network.scores(_smooth_batch(states, trunk_states_BD), self.gate_type)
        if self.bayes_filter:
            posterior_BC = np.stack([state.posterior_C for state in states])
            scores_BC = self.bayes_filter.advance_batch(posterior_BC, _log(scores_BC))
        for state, scores_C, token_id in zip(states, scores_BC, token_ids_B, strict=True):
            state.posterior_C, state.last_token = scores_C.copy(), int(token_id)
        return scores_BC


ColumnScores = BayesScores | LearnedScores
"""Scores over columns after each token; `advance` and `advance_batch` update the states they are given."""


def _smooth_batch(states: Sequence[FilterState], trunk_states_BD: TrunkStates) -> Floats:
    rows: list[Floats] = []
    for state, trunk_state_D in zip(states, trunk_states_BD, strict=True):
        assert state.smoothed is not None
        rows.append(state.smoothed.advance(trunk_state_D[None])[0])
    return np.stack(rows)


def _log(scores_NC: Floats) -> Floats:
    return np.log(np.maximum(scores_NC, 1e-30))
