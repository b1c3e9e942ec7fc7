"""Linear next-token heads on trunk states: the evidence that a large vocabulary might want instead of tables."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.bigram_evidence import sample_windows
from services.shared.modeling.trunk import trunk_states
from services.trainer_worker.evaluation.windows import Streams, Windows

HEAD_TOKENS = 20_000
_EPOCHS = 2
_BATCH_TOKENS = 512
_LEARNING_RATE = 5e-3
_BATCH = 16


@dataclass(frozen=True)
class NextTokenHeads:
    """weights_CDV and biases_CV: log p_c(next | state) = log_softmax(state W_c + b_c)."""

    tap_layer: int
    weights_CDV: Tensor
    biases_CV: Tensor

    @classmethod
    def train(cls, base: LoadedBase, texts: Sequence[Streams], *, tap_layer: int, seed: int) -> "NextTokenHeads":
        """One head per text, on a sample of its windows; each starts from the text's own token frequencies."""
        heads = [_train(base, streams, tap_layer, seed) for streams in texts]
        weights_CDV = torch.stack([head.weight.detach().T.contiguous() for head in heads])
        return cls(tap_layer, weights_CDV, torch.stack([head.bias.detach() for head in heads]))

    @property
    def num_bytes(self) -> int:
        """Of all heads, in float32."""
        return 4 * (self.weights_CDV.numel() + self.biases_CV.numel())

    @torch.no_grad()
    def log_evidence(self, base: LoadedBase, windows: Windows) -> np.ndarray:
        """Of every token given the state before it, [B, T, C]; zeros for first tokens."""
        ids_BT = windows.token_ids_BT
        evidence_BTC = torch.zeros(*ids_BT.shape, len(self.weights_CDV), dtype=torch.float64)
        for start in range(0, len(windows), _BATCH):
            rows = slice(start, start + _BATCH)
            states_BTD = trunk_states(base.model, ids_BT[rows], self.tap_layer)[:, :-1].float()
            for column, (weights_DV, bias_V) in enumerate(zip(self.weights_CDV, self.biases_CV, strict=True)):
                log_BTV = (states_BTD @ weights_DV + bias_V).log_softmax(dim=-1)
                evidence_BTC[rows, 1:, column] = log_BTV.gather(-1, ids_BT[rows, 1:, None])[..., 0].double()
        return evidence_BTC.numpy()


def _train(base: LoadedBase, streams: Streams, tap_layer: int, seed: int) -> nn.Linear:
    states_ND, next_N = _states(base, streams, tap_layer, seed)
    vocab_size = base.tokenizer.vocab_size
    head = nn.Linear(states_ND.shape[1], vocab_size)
    nn.init.zeros_(head.weight)
    counts_V = torch.bincount(next_N, minlength=vocab_size).float() + 0.5
    with torch.no_grad():
        head.bias.copy_((counts_V / counts_V.sum()).log())
    optimizer = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_EPOCHS):
        for picks_N in torch.randperm(len(next_N), generator=generator).split(_BATCH_TOKENS):
            loss = nn.functional.cross_entropy(head(states_ND[picks_N]), next_N[picks_N])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head


def _states(base: LoadedBase, streams: Streams, tap_layer: int, seed: int) -> tuple[Tensor, Tensor]:
    windows = [torch.from_numpy(ids_T) for ids_T in sample_windows(streams, HEAD_TOKENS, seed)]
    states: list[Tensor] = []
    for start in range(0, len(windows), _BATCH):
        batch = windows[start : start + _BATCH]
        states_BTD = trunk_states(base.model, nn.utils.rnn.pad_sequence(batch, batch_first=True), tap_layer)
        states += [states_TD[: len(ids_T) - 1].float() for states_TD, ids_T in zip(states_BTD, batch, strict=True)]
    return torch.cat(states), torch.cat([ids_T[1:] for ids_T in windows])
