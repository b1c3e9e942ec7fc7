"""Records the gates of a native mixture-of-experts model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from services.trainer_worker.tracing.native_gates import Selection, find_gates, listening
from services.trainer_worker.tracing.recording import Choices, TokenizedPrompt, by_falling_weight


@dataclass(frozen=True)
class _Heard:
    """Pass by pass; copied to the CPU when it is asked for, once a layer and batch."""

    passes: Mapping[int, Sequence[Selection]]
    num_rows: int

    def layers(self) -> Mapping[int, Choices]:
        """Of layers whose gate was asked at all."""
        return {layer: self._joined(selections) for layer, selections in self.passes.items() if selections}

    def _joined(self, selections: Sequence[Selection]) -> Choices:
        experts_BTK = torch.cat([self._by_row(one.experts_NK) for one in selections], dim=1)
        weights_BTK = torch.cat([self._by_row(one.weights_NK) for one in selections], dim=1)
        return by_falling_weight(experts_BTK.cpu().numpy(), weights_BTK.float().cpu().numpy())

    def _by_row(self, tensor_NK: Tensor) -> Tensor:
        return tensor_NK.reshape(self.num_rows, -1, tensor_NK.shape[-1])


class NativeRecorder:
    """Raises InvalidRequest for a model whose gates are not known."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._gates = find_gates(model)

    @property
    def num_experts(self) -> Mapping[int, int]:
        """E by layer."""
        return {gate.layer: gate.num_experts for gate in self._gates}

    @contextmanager
    def recording(self, prompts: Sequence[TokenizedPrompt]) -> Iterator[_Heard]:
        """Every pass inside is heard, a row of the batch for each prompt."""
        with listening(self._gates) as passes:
            yield _Heard(passes, len(prompts))
