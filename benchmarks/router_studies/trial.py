"""From log-evidence to gate weights for many windows at once, through the product's own filter and gate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.shared.config import RouterSettings
from services.shared.modeling.bayes_filter import BayesFilter
from services.shared.modeling.bigram_evidence import BigramEvidenceStack
from services.shared.modeling.gating import Gate
from services.shared.modeling.router_artifact import POSTERIOR_THRESHOLD
from services.shared.vocabulary import GateType
from services.trainer_worker.evaluation.figures import Totals
from services.trainer_worker.evaluation.windows import Windows

Floats = npt.NDArray[np.float64]
_SETTINGS = RouterSettings()


@dataclass(frozen=True)
class Constants:
    """What a Bayes router can be set to; by default today's defaults."""

    stickiness: float = _SETTINGS.stickiness
    temper: float = _SETTINGS.temper
    threshold: float = POSTERIOR_THRESHOLD
    max_experts: int = _SETTINGS.max_experts_per_token
    gate_type: GateType = GateType.THRESHOLD

    def posteriors(self, log_evidence_BTC: Floats) -> Floats:
        """Posteriors after each token, [B, T, C]: all windows step by step, as a batch that decodes."""
        num_windows, num_tokens, num_columns = log_evidence_BTC.shape
        bayes_filter = self.bayes_filter(num_columns)
        posterior_BC = np.tile(bayes_filter.start(), (num_windows, 1))
        posterior_BTC = np.empty_like(log_evidence_BTC)
        for step in range(num_tokens):
            posterior_BC = bayes_filter.advance_batch(posterior_BC, log_evidence_BTC[:, step])
            posterior_BTC[:, step] = posterior_BC
        return posterior_BTC

    def bayes_filter(self, num_columns: int) -> BayesFilter:
        """The filter over so many columns."""
        return BayesFilter(num_columns, self.stickiness, self.temper)

    def weights(self, posterior_BTC: Floats) -> Floats:
        """Gate weights, [B, T, C]; the last column is the base's."""
        gate = Gate(self.gate_type, self.threshold, self.max_experts)
        return gate.weigh(posterior_BTC.reshape(-1, posterior_BTC.shape[-1])).reshape(posterior_BTC.shape)

    def gates(self, log_evidence_BTC: Floats) -> Floats:
        """Both, one after the other."""
        return self.weights(self.posteriors(log_evidence_BTC))


def token_pairs(stack: BigramEvidenceStack, windows: Windows) -> Floats:
    """Log-evidence of token pairs, [B, T, C]."""
    next_BT = windows.token_ids_BT.numpy()
    previous_BT = np.concatenate([np.full((len(next_BT), 1), -1), next_BT[:, :-1]], axis=1)
    return stack.log_evidence(previous_BT.ravel(), next_BT.ravel()).reshape(*next_BT.shape, -1)


@dataclass(frozen=True)
class Behaviour:
    """What a router did on each window, as sums over its predicted tokens: every figure is a ratio of two sums."""

    totals: dict[str, Totals]

    @classmethod
    def of(
        cls, posterior_BTC: Floats, weights_BTC: Floats, windows: Windows, families_C: Sequence[int] | None = None
    ) -> "Behaviour":
        """Of posteriors and gates; `families_C` are columns that may be taken for each other."""
        counted_BT = windows.counted
        domains_BT = windows.domains_BT.numpy()
        best_BT = weights_BTC.argmax(axis=2)
        own_BT = np.take_along_axis(posterior_BTC, domains_BT[..., None], axis=2)[..., 0]
        values = {
            "accuracy": best_BT == domains_BT,
            "own posterior": own_BT,
            "own log-posterior": np.log(np.maximum(own_BT, 1e-30)),
            "experts per token": (weights_BTC[..., :-1] > 0).sum(axis=2),
            "entropy, bits": -(posterior_BTC * np.log2(np.maximum(posterior_BTC, 1e-30))).sum(axis=2),
            "confidence": posterior_BTC.max(axis=2),
            "base share": weights_BTC[..., -1],
        }
        if families_C is not None:
            families = np.asarray(families_C)
            values["family accuracy"] = families[best_BT] == families[domains_BT]
        groups_B = windows.first_domains
        return cls(
            {
                name: Totals((value_BT[:, :-1] * counted_BT).sum(axis=1), counted_BT.sum(axis=1), groups_B)
                for name, value_BT in values.items()
            }
        )
