"""Sums of evidences: what each kind says of some windows, and weights fitted on held-out likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from benchmarks.router_studies.setting import Setting
from benchmarks.router_studies.trial import Behaviour, Constants, token_pairs
from services.trainer_worker.evaluation.windows import Windows

BIGRAM_WEIGHTS = (0.0, 0.3, 0.6, 1.0, 1.5, 2.0)
TRUNK_WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
VALIDATION_PER_DOMAIN, VALIDATION_SWITCHING = 8, 30


@dataclass(frozen=True)
class Evidence:
    """Log-evidence [B, T, C] of token pairs, and of states by tap layer."""

    pairs_BTC: np.ndarray
    states_BTC: dict[int, np.ndarray]

    @classmethod
    def of(
        cls, setting: Setting, windows: Windows, taps: Sequence[int], names: Sequence[str] | None = None
    ) -> "Evidence":
        """Of these experts; default: one for each domain."""
        names = names or setting.domains
        return cls(
            token_pairs(setting.stack([setting.table(name) for name in names]), windows),
            {tap: setting.states(windows, setting.rows(names, tap)) for tap in taps},
        )

    def summed(self, bigram_weight: float, trunk_weight: float, tap_layer: int | None) -> np.ndarray:
        """The weighted sum that a filter is given."""
        summed_BTC: np.ndarray = bigram_weight * self.pairs_BTC
        return summed_BTC if tap_layer is None else summed_BTC + trunk_weight * self.states_BTC[tap_layer]


def fit_weights(
    setting: Setting, *, tap_layer: int, names: Sequence[str] | None = None, alike: Sequence[int] | None = None
) -> tuple[float, float]:
    """Weights of pairs and states under which a token's own column is most probable, on validation documents.

    `alike` are columns that count as one: those of experts that share a domain. Whole documents and such that switch
    have the same say.
    """
    parts = (
        setting.whole(setting.validation, VALIDATION_PER_DOMAIN),
        setting.switching(setting.validation, VALIDATION_SWITCHING),
    )
    evidences = [Evidence.of(setting, windows, [tap_layer], names) for windows in parts]

    def likelihood(weights: tuple[float, float]) -> float:
        found = []
        for windows, evidence in zip(parts, evidences, strict=True):
            posterior_BTC = Constants().posteriors(evidence.summed(*weights, tap_layer))
            if alike is not None:
                first, *others = alike
                posterior_BTC[..., first] += posterior_BTC[..., others].sum(axis=-1)
            one = Behaviour.of(posterior_BTC, posterior_BTC, windows).totals["own log-posterior"]
            found.append(one.nats_B.sum() / one.tokens_B.sum())
        return float(np.mean(found))

    return max(product(BIGRAM_WEIGHTS, TRUNK_WEIGHTS), key=likelihood)
