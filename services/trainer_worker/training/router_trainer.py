"""The learned router's network, its optimiser, and the loss that comes back through the mixture."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from services.shared.config import RouterSettings
from services.shared.modeling.learned_router import LearnedRouter, dense_weights
from services.shared.modeling.losses import Capacity, limit_capacity, load_balancing_loss, z_loss
from services.shared.modeling.trunk import hidden_size_of, smooth, trunk_states
from services.shared.schemas.jobs import RouterHyperparameters
from services.shared.vocabulary import GateType
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble
from services.trainer_worker.training.spliced_documents import DocumentSplicer, SplicedBatch
from services.trainer_worker.training.training_state import load_training_state, training_state

_FIT_BATCHES: Final = 4
_WEIGHT_DECAY: Final = 0.01
_LARGEST_GRADIENT: Final = 1.0


@dataclass(frozen=True)
class RouterStep:
    """What one step cost: the task's nats with all penalties, the balance loss (1.0 = even), tokens turned away."""

    loss: float
    load_balance: float
    num_overflow: int


class RouterTrainer:
    """Trains a `LearnedRouter` over the experts of an ensemble, every column speaking at every token."""

    def __init__(
        self, ensemble: ExpertEnsemble, settings: RouterSettings, hyperparameters: RouterHyperparameters
    ) -> None:
        self.ensemble = ensemble
        self.settings = settings
        self._hyperparameters = hyperparameters
        self.hidden_size = hidden_size_of(ensemble.base.model)
        self.network = LearnedRouter(
            len(smooth(torch.zeros(1, self.hidden_size))[0]),
            len(ensemble.experts) + 1,
            use_bias=settings.use_router_bias,
            dropout=settings.router_dropout,
        )
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=hyperparameters.learning_rate, weight_decay=_WEIGHT_DECAY
        )

    def features(self, batch: SplicedBatch) -> Tensor:
        """Smoothed trunk states of the frozen base, [B * T, F]."""
        ids_BT = batch.token_ids_BT.to(self.ensemble.base.device)
        states_BTD = trunk_states(self.ensemble.base.model, ids_BT, self.settings.tap_layer)
        return torch.from_numpy(np.concatenate([smooth(states_TD) for states_TD in states_BTD])).float()

    def fit_input_scale(self, splicer: DocumentSplicer) -> None:
        """Standardise by some batches of training text."""
        batches = [splicer.draw(self._hyperparameters.batch_size) for _ in range(_FIT_BATCHES)]
        self.network.standardise(torch.cat([self.features(batch) for batch in batches]).double().numpy())

    def state(self) -> dict[str, Tensor]:
        """Network, optimiser and random state as named tensors."""
        return training_state(self.network, self._optimizer)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        load_training_state(tensors, self.network, self._optimizer)

    def steps(self, splicer: DocumentSplicer, *, first_step: int = 0) -> Iterator[RouterStep]:
        """Train, one optimiser step per item; `first_step` were done before."""
        self.network.train()
        for _ in range(first_step, self._hyperparameters.num_steps):
            loss, step = self._loss(splicer.draw(self._hyperparameters.batch_size))
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), _LARGEST_GRADIENT)
            self._optimizer.step()
            yield step

    def _loss(self, batch: SplicedBatch) -> tuple[Tensor, RouterStep]:
        settings = self.settings
        logits_NC = self.network(self.features(batch))
        weights_NC = dense_weights(logits_NC, settings.router_type)
        shares_NE = weights_NC[:, :-1] / weights_NC[:, :-1].sum(dim=-1, keepdim=True)
        selected_NE = self._selected(shares_NE)
        capacity = self._capacity(selected_NE)
        # A full expert is passed by: its share goes through the base alone.
        kept_NE = weights_NC[:, :-1] * (capacity.kept_NE | ~selected_NE)
        task = self.ensemble.nats(batch.token_ids_BT, kept_NE.view(*batch.token_ids_BT.shape, -1)).mean()
        balance = load_balancing_loss(shares_NE, selected_NE)
        loss = task + settings.load_balancing_weight * balance + settings.z_loss_weight * z_loss(logits_NC)
        if settings.expert_label_weight > 0:
            labels_N = batch.columns_BT.flatten().to(logits_NC.device)
            loss = loss + settings.expert_label_weight * label_loss(logits_NC, labels_N, settings.router_type)
        return loss, RouterStep(float(loss.detach()), float(balance.detach()), capacity.num_overflow)

    def _selected(self, shares_NE: Tensor) -> Tensor:
        num_kept = min(self.settings.max_experts_per_token, shares_NE.shape[-1])
        chosen_NK = shares_NE.topk(num_kept, dim=-1).indices
        return torch.zeros_like(shares_NE, dtype=torch.bool).scatter(-1, chosen_NK, value=True)

    def _capacity(self, selected_NE: Tensor) -> Capacity:
        return limit_capacity(
            selected_NE,
            capacity_factor=self.settings.capacity_factor,
            experts_per_token=min(self.settings.max_experts_per_token, selected_NE.shape[-1]),
        )


def label_loss(logits_NC: Tensor, labels_N: Tensor, gate_type: GateType) -> Tensor:
    """How far the scores are from naming the column a token's text belongs to: per column for sigmoid scores."""
    if gate_type == GateType.THRESHOLD:
        targets_NC = torch.nn.functional.one_hot(labels_N, logits_NC.shape[-1]).to(logits_NC.dtype)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits_NC, targets_NC)
    return torch.nn.functional.cross_entropy(logits_NC, labels_N)
