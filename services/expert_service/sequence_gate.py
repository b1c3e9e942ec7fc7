"""A sequence's gate: from its plan and its text to weights per token and expert (DESIGN D1).

The router's state follows the tokens of this sequence alone, so weights never depend on neighbours, slots or replicas.
Shape letters: T tokens, B sequences, C columns (experts, then the base).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from services.shared.schemas.sequences import RoutingPlan
from services.shared.vocabulary import BASE, PlanMode

Weights = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
States = npt.NDArray[np.floating]


class Scorer(Protocol):
    """What the engine needs of a release's router (services/shared/modeling/release_scorer.py)."""

    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def tap_layer(self) -> int | None: ...
    def start(self) -> Any: ...
    def advance(self, state: Any, token_ids: Sequence[int], trunk_states_TD: States | None = None) -> Scores: ...
    def advance_batch(
        self, states: Sequence[Any], token_ids: Sequence[int], trunk_states_BD: States | None = None
    ) -> Scores: ...
    def weights(self, scores_TC: Scores, candidates: Sequence[str] | None = None) -> Weights: ...


@dataclass
class SequenceGate:
    """The gate of one sequence and, with a router, its state.

    `columns` name the weights: candidates and others in plan order, then the base. `fixed_C` are the weights of plans
    without a router, the same at every token.
    """

    columns: tuple[str, ...]
    candidates: tuple[str, ...]
    scorer: Scorer | None = None
    state: Any = None
    fixed_C: Weights | None = None
    needs_second_stream: bool = False
    """A candidate has weights below the tap, so the trunk must be run without it to know the gates."""

    @classmethod
    def of(cls, plan: RoutingPlan, scorer: Scorer | None, *, lowest_layer: int | None = None) -> "SequenceGate":
        """The gate at the start of a sequence; `lowest_layer` is the lowest that any candidate adapts."""
        if plan.mode is PlanMode.ROUTED:
            assert scorer is not None
            below = scorer.tap_layer is not None and lowest_layer is not None and lowest_layer < scorer.tap_layer
            return cls(scorer.columns, plan.candidates, scorer, scorer.start(), needs_second_stream=below)
        names = plan.candidates if plan.mode is PlanMode.FIXED else ()
        weights = [plan.weights[name] for name in names]
        fixed_C = np.array([*weights, max(0.0, 1.0 - sum(weights))], dtype=np.float32)
        return cls((*names, BASE), names, fixed_C=fixed_C)

    def saved_state(self) -> Any:
        """A copy of the state where token ids alone move it on; None otherwise, for a pass keeps those itself."""
        return self.state.copy() if self.scorer is not None and self.tap_layer is None else None

    def restore(self, saved: Any) -> None:
        """Back to a saved state."""
        if saved is not None:
            self.state = saved

    def restart(self) -> None:
        """Back to the state before the first token."""
        if self.scorer is not None:
            self.state = self.scorer.start()

    @property
    def tap_layer(self) -> int | None:
        """Where the router reads hidden states; None when token ids suffice."""
        return self.scorer.tap_layer if self.scorer else None

    def advance(self, token_ids: Sequence[int], trunk_states_TD: States | None = None) -> Weights:
        """Weights at each of these tokens, [T, C], after observing it and all before it."""
        if self.scorer is None:
            assert self.fixed_C is not None
            return np.broadcast_to(self.fixed_C, (len(token_ids), len(self.columns)))
        scores_TC = self.scorer.advance(self.state, token_ids, trunk_states_TD)
        return self.scorer.weights(scores_TC, self.candidates)

    def named(self, weights_C: Weights) -> dict[str, float]:
        """Non-zero weights by name, for the token event."""
        weights = weights_C.tolist()
        return {name: round(weight, 7) for name, weight in zip(self.columns, weights, strict=True) if weight}


def advance_gates(
    gates: Sequence[SequenceGate], token_ids: Sequence[int], trunk_states_BD: States | None = None
) -> list[Weights]:
    """One more token for each of B sequences: weights_C per sequence; those that share a router advance together."""
    weights: list[Weights | None] = [None] * len(gates)
    groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for index, gate in enumerate(gates):
        if gate.scorer is None:
            weights[index] = gate.fixed_C
        else:
            groups.setdefault((id(gate.scorer), gate.candidates), []).append(index)
    for members in groups.values():
        scorer = gates[members[0]].scorer
        assert scorer is not None
        scores_GC = scorer.advance_batch(
            [gates[index].state for index in members],
            [token_ids[index] for index in members],
            None if trunk_states_BD is None else trunk_states_BD[members],
        )
        weights_GC = scorer.weights(scores_GC, gates[members[0]].candidates)
        for index, weights_C in zip(members, weights_GC, strict=True):
            weights[index] = weights_C
    return [weights_C for weights_C in weights if weights_C is not None]
