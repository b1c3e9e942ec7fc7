"""A trained router with its gate on: which level its logits need, and what it is worth on held-out documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from services.shared.modeling.gating import Gate
from services.shared.modeling.learned_gate import score_logits
from services.shared.modeling.learned_router import dense_weights
from services.shared.modeling.router_artifact import SIGMOID_THRESHOLD
from services.shared.vocabulary import GateType
from services.trainer_worker.training.router_trainer import RouterTrainer
from services.trainer_worker.training.spliced_documents import SplicedBatch

_LEVELS: Final = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Judgement:
    """Nats per token on held-out documents; accuracy: the largest score is that of the token's own column."""

    base_loss: float
    dense_loss: float
    gated_loss: float
    oracle_loss: float
    token_accuracy: float
    experts_per_token: float


class RouterJudge:
    """Reads documents through a trainer's network, without gradients or dropout."""

    def __init__(self, trainer: RouterTrainer) -> None:
        settings = trainer.settings
        self._ensemble = trainer.ensemble
        self._features = trainer.features
        self._network = trainer.network.eval()
        self._gate_type = settings.router_type
        threshold = settings.expert_selection_threshold
        self._gate = Gate(
            settings.router_type,
            SIGMOID_THRESHOLD if threshold is None else threshold,
            settings.max_experts_per_token,
        )

    @torch.no_grad()
    def best_level(self, batches: Sequence[SplicedBatch]) -> float:
        """The shift of all logits under which the threshold does least harm.

        Dense training normalises the sigmoids, so it leaves their common level open; a threshold does not.
        """
        if self._gate_type != GateType.THRESHOLD:
            return 0.0
        losses = {level: self._gated_loss(batches, level) for level in _LEVELS}
        return min(losses, key=lambda level: (losses[level], abs(level)))

    @torch.no_grad()
    def judge(self, batches: Sequence[SplicedBatch], level: float) -> Judgement:
        """How the router does on these documents, beside the base, the oracle and itself without a threshold."""
        rows = [self._judge(batch, level) for batch in batches]
        return Judgement(*(float(np.mean(column)) for column in zip(*rows, strict=True)))

    def _judge(self, batch: SplicedBatch, level: float) -> tuple[float, float, float, float, float, float]:
        labels_N = batch.columns_BT.flatten()
        oracle_NC = torch.nn.functional.one_hot(labels_N, len(self._ensemble.experts) + 1).float()
        logits_NC = self._network(self._features(batch))
        gated_NC = self._weights(logits_NC, level)
        return (
            self._loss(batch, torch.zeros_like(oracle_NC)),
            self._loss(batch, dense_weights(logits_NC, self._gate_type)),
            self._loss(batch, gated_NC),
            self._loss(batch, oracle_NC),
            float((logits_NC.argmax(dim=-1) == labels_N).float().mean()),
            float((gated_NC[:, :-1] > 0).sum(dim=1).float().mean()),
        )

    def _gated_loss(self, batches: Sequence[SplicedBatch], level: float) -> float:
        logits = [self._network(self._features(batch)) for batch in batches]
        losses = [
            self._loss(batch, self._weights(logits_NC, level)) for batch, logits_NC in zip(batches, logits, strict=True)
        ]
        return float(np.mean(losses))

    def _weights(self, logits_NC: Tensor, level: float) -> Tensor:
        scores_NC = score_logits(logits_NC.double().numpy() + level, self._gate_type)
        return torch.from_numpy(self._gate.weigh(scores_NC))

    def _loss(self, batch: SplicedBatch, weights_NC: Tensor) -> float:
        weights_BTE = weights_NC[:, :-1].reshape(*batch.token_ids_BT.shape, -1)
        return float(self._ensemble.nats(batch.token_ids_BT, weights_BTE).mean())
