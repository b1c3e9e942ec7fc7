"""MultiExpertRouter of the requirements as a trainable network: smoothed trunk states in, logits over columns out.

`LearnedGate` (numpy) is the same arithmetic for serving.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from services.shared.modeling.learned_gate import LearnedGate
from services.shared.vocabulary import GateType


class LearnedRouter(nn.Module):
    """logits = W2 dropout(relu(W1 x + b1)) + b2 over standardised features x; `use_bias` governs b2.

    Scores start equal: the last layer is zero, so nothing is decided by the noise of initialisation.
    """

    mean_F: Tensor
    scale_F: Tensor

    def __init__(self, num_features: int, num_columns: int, *, use_bias: bool, dropout: float) -> None:
        super().__init__()
        num_hidden = max(num_features // 2, 8)
        self.hidden = nn.Linear(num_features, num_hidden)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(num_hidden, num_columns, bias=use_bias)
        nn.init.zeros_(self.score.weight)
        if use_bias:
            nn.init.zeros_(self.score.bias)
        self.register_buffer("mean_F", torch.zeros(num_features))
        self.register_buffer("scale_F", torch.ones(num_features))

    def standardise(self, features_NF: npt.NDArray[np.float64]) -> None:
        """Fit the input scale: zero mean and unit variance over these features."""
        self.mean_F.copy_(torch.from_numpy(features_NF.mean(axis=0)))
        self.scale_F.copy_(torch.from_numpy(1.0 / (features_NF.std(axis=0) + 1e-6)))

    def forward(self, features_NF: Tensor) -> Tensor:
        """logits_NC."""
        hidden_NH = self.hidden((features_NF - self.mean_F) * self.scale_F).relu()
        logits_NC: Tensor = self.score(self.dropout(hidden_NH))
        return logits_NC

    @torch.no_grad()
    def to_gate(self) -> LearnedGate:
        """The network as serving applies it."""
        bias = self.score.bias if self.score.bias is not None else torch.zeros(self.score.out_features)
        tensors = (self.mean_F, self.scale_F, self.hidden.weight, self.hidden.bias, self.score.weight, bias)
        return LearnedGate(*(tensor.double().cpu().numpy() for tensor in tensors))


def dense_weights(logits_NC: Tensor, gate_type: GateType) -> Tensor:
    """Every column's share while training, rows summing to 1: a gate that keeps one column has no gradient."""
    if gate_type == GateType.THRESHOLD:
        scores_NC = logits_NC.sigmoid()
        return scores_NC / scores_NC.sum(dim=-1, keepdim=True)
    return logits_NC.softmax(dim=-1)
