"""The Bayes filter and its gate with gradients: how fast domains change and how much a token counts, as parameters."""

import math

import torch
from torch import Tensor, nn

from services.shared.modeling.bayes_filter import SMALLEST_LOG, BayesFilter
from services.shared.modeling.gating import Gate

_LARGEST: float = 0.999


class TrainableFilter(nn.Module):
    """What `BayesFilter` and `Gate` compute; stickiness and temper stay within 0..1 as logits."""

    def __init__(self, start: BayesFilter, gate: Gate) -> None:
        super().__init__()
        self._num_columns = start.num_columns
        self._gate = gate
        self.stickiness_logit = nn.Parameter(torch.tensor(_logit(start.stickiness), dtype=torch.float64))
        self.temper_logit = nn.Parameter(torch.tensor(_logit(start.temper), dtype=torch.float64))

    @property
    def stickiness(self) -> float:
        """Chance per token that the domain changes, as learned."""
        return float(self.stickiness_logit.detach().sigmoid())

    @property
    def temper(self) -> float:
        """Exponent on each token's likelihood, as learned."""
        return float(self.temper_logit.detach().sigmoid())

    def forward(self, log_evidence_BTC: Tensor) -> Tensor:
        """Gate weights of documents from their beginning, float32 [B, T, C]; the gate's choice has no gradient."""
        posterior_BTC = self._posteriors(log_evidence_BTC)
        scores_NC = posterior_BTC.detach().flatten(0, 1).numpy()
        gated_NC = torch.from_numpy(self._gate.weigh(scores_NC))
        kept_NC = posterior_BTC.flatten(0, 1) * (gated_NC > 0)
        totals_N1 = kept_NC.sum(dim=-1, keepdim=True)
        # Where nothing was kept the gate says "the base alone".
        weights_NC = torch.where(totals_N1 > 0, kept_NC / totals_N1.clamp_min(1e-30), gated_NC)
        return weights_NC.view(posterior_BTC.shape).float()

    def _posteriors(self, log_evidence_BTC: Tensor) -> Tensor:
        scaled_BTC = self.temper_logit.sigmoid() * log_evidence_BTC
        scaled_BTC = scaled_BTC - scaled_BTC.amax(dim=-1, keepdim=True)
        likelihood_BTC = scaled_BTC.clamp_min(SMALLEST_LOG).exp()
        stickiness = self.stickiness_logit.sigmoid()
        posterior_BC = torch.full_like(likelihood_BTC[:, 0], 1.0 / self._num_columns)
        posteriors = []
        for likelihood_BC in likelihood_BTC.unbind(dim=1):
            posterior_BC = likelihood_BC * (posterior_BC * (1.0 - stickiness) + stickiness / self._num_columns)
            posterior_BC = posterior_BC / posterior_BC.sum(dim=-1, keepdim=True)
            posteriors.append(posterior_BC)
        return torch.stack(posteriors, dim=1)


def _logit(share: float) -> float:
    share = min(share, _LARGEST)
    return math.log(share / (1.0 - share))
