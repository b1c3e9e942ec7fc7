"""Our own mixture while it generates: a release's router weighs its experts token by token, as when it is served.

One layer, 0, whose experts are the release's and, behind them, the base model. Weights are those of the release's
scorer, which the engine computes with too. Shape letters: B sequences, Q columns of a pass, C columns of the gate.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from services.shared.modeling.candidates import choose_candidates
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.trunk import trunk_states
from services.trainer_worker.tracing.recording import Choices, TokenizedPrompt, by_falling_weight
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble

LAYER: Final = 0
_PASSED_ON: Final = ("attention_mask", "position_ids")


class MixtureRecorder:
    """Puts the ensemble of a release's experts under its router, and keeps what that says."""

    def __init__(self, ensemble: ExpertEnsemble, scorer: ReleaseScorer, *, max_candidates: int) -> None:
        self._ensemble = ensemble
        self._scorer = scorer
        self._max_candidates = max_candidates

    @property
    def num_experts(self) -> Mapping[int, int]:
        """The release's, and the base model."""
        return {LAYER: len(self._scorer.columns)}

    @contextmanager
    def recording(self, prompts: Sequence[TokenizedPrompt]) -> Iterator["_Weighing"]:
        """Every pass inside is the mixture's."""
        weighing = _Weighing(self._ensemble, self._scorer, prompts, max_candidates=self._max_candidates)
        with self._ensemble.weighing(weighing):
            yield weighing


class _Weighing:
    """The gates of one batch: states of its sequences, and the weights of all passes so far."""

    def __init__(
        self,
        ensemble: ExpertEnsemble,
        scorer: ReleaseScorer,
        prompts: Sequence[TokenizedPrompt],
        *,
        max_candidates: int,
    ) -> None:
        self._model = ensemble.base.model
        self._scorer = scorer
        self._prompts = prompts
        self._max_candidates = max_candidates
        self._states = [scorer.start() for _ in prompts]
        self._candidates: list[tuple[str, ...]] = []
        self._trunk_cache = DynamicCache()
        self._passes: list[NDArray[np.float32]] = []

    def __call__(self, arguments: Mapping[str, Any]) -> Tensor:
        """weights_BQE of the experts for a pass, all of the prompts at first and then a token of each sequence."""
        states_BQD = self._trunk_states(arguments)
        if not self._passes:
            weights_BQC = self._read_prompts(arguments["input_ids"].shape[1], states_BQD)
        else:
            weights_BQC = self._read_tokens(arguments["input_ids"][:, 0].tolist(), states_BQD)[:, None]
        self._passes.append(weights_BQC)
        return torch.from_numpy(np.ascontiguousarray(weights_BQC[..., :-1]))

    def layers(self) -> Mapping[int, Choices]:
        """The one layer."""
        weights_BTC = np.concatenate(self._passes, axis=1)
        experts_BTC = np.broadcast_to(np.arange(weights_BTC.shape[-1]), weights_BTC.shape)
        return {LAYER: by_falling_weight(experts_BTC, weights_BTC)}

    def _read_prompts(self, num_columns: int, states_BQD: NDArray[Any] | None) -> NDArray[np.float32]:
        """Prompts stand at the end of their rows; padding before them is the base model's."""
        weights_BQC = np.zeros((len(self._prompts), num_columns, len(self._scorer.columns)), dtype=np.float32)
        weights_BQC[..., -1] = 1.0
        for row, (prompt, state) in enumerate(zip(self._prompts, self._states, strict=True)):
            num_tokens = len(prompt.token_ids)
            states_TD = states_BQD[row, -num_tokens:] if states_BQD is not None else None
            scores_TC = self._scorer.advance(state, prompt.token_ids, states_TD)
            candidates = choose_candidates(self._scorer.columns, scores_TC, self._max_candidates)
            self._candidates.append(candidates)
            weights_BQC[row, -num_tokens:] = self._scorer.weights(scores_TC, candidates)
        return weights_BQC

    def _read_tokens(self, token_ids: Sequence[int], states_BQD: NDArray[Any] | None) -> NDArray[np.float32]:
        states_BD = states_BQD[:, -1] if states_BQD is not None else None
        scores_BC = self._scorer.advance_batch(self._states, token_ids, states_BD)
        if len(self._scorer.columns) <= self._max_candidates + 1:  # everybody is a candidate of every sequence
            return self._scorer.weights(scores_BC)
        rows = [
            self._scorer.weights(scores_C[None], candidates)
            for scores_C, candidates in zip(scores_BC, self._candidates, strict=True)
        ]
        return np.concatenate(rows)

    def _trunk_states(self, arguments: Mapping[str, Any]) -> NDArray[Any] | None:
        """What a router reads that listens to the base model: its first layers without experts, in a cache of their
        own, because experts may have weights there."""
        tap_layer = self._scorer.tap_layer
        if tap_layer is None:
            return None
        passed_on = {name: arguments[name] for name in _PASSED_ON if name in arguments}
        states_BQD = trunk_states(
            self._model,
            arguments["input_ids"],
            tap_layer,
            past_key_values=self._trunk_cache,
            use_cache=True,
            **passed_on,
        )
        states: NDArray[Any] = states_BQD.float().cpu().numpy()
        return states
