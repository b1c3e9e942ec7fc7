"""The next token of each sequence: greedy rows at once, sampled rows one by one with a generator of their own.

A sequence's choices depend on its own logits, parameters and seed alone, never on its neighbours. The log-probability
reported is that of the chosen token under the model's raw logits (log-softmax before temperature, penalties and
filters), as TGI reports it. Processors are transformers' own, so that they mean what they mean there.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.shared.schemas.sampling import SamplingParameters

_MAX_FRESH_SEED = 2**31


@dataclass(frozen=True)
class Choice:
    """A chosen token; `logprob` is NaN when the model's numbers were not finite."""

    token_id: int
    logprob: float


class TokenChooser:
    """How one sequence chooses. Stateful only in its generator."""

    def __init__(self, parameters: SamplingParameters, *, vocab_size: int, device: torch.device) -> None:
        self.is_greedy = not parameters.do_sample or parameters.temperature == 0.0
        self.seed = None if self.is_greedy else _seed(parameters)
        self._processors = _processors(parameters, is_greedy=self.is_greedy, vocab_size=vocab_size)
        self._generator: torch.Generator | None = None
        if self.seed is not None:
            self._generator = torch.Generator(device=device)
            self._generator.manual_seed(self.seed)

    @property
    def needs_history(self) -> bool:
        """Whether earlier tokens change the choice."""
        return any(isinstance(processor, RepetitionPenaltyLogitsProcessor) for processor in self._processors)

    @property
    def is_plain(self) -> bool:
        """Greedy without processors: the largest logit."""
        return self.is_greedy and not len(self._processors)

    def choose(self, logits_V: Tensor, history_T: Tensor) -> int:
        """The next token from float32 logits and the ids so far."""
        process = cast(Callable[[Tensor, Tensor], Tensor], self._processors)  # annotated with a legacy tensor type
        scores_1V = process(history_T[None], logits_V[None].clone())
        if self.is_greedy:
            return int(scores_1V.argmax())
        probabilities_V = scores_1V[0].softmax(dim=-1)
        return int(torch.multinomial(probabilities_V, 1, generator=self._generator))


@torch.inference_mode()
def choose_tokens(
    logits_BV: Tensor, choosers: Sequence[TokenChooser], histories: Sequence[Sequence[int]]
) -> list[Choice]:
    """One choice per row. Rows with numbers that are not finite get a NaN log-probability and token 0."""
    logits_BV = logits_BV.float()
    token_ids_B = _largest(logits_BV)
    logprobs_BV = logits_BV.log_softmax(dim=-1)
    finite = logprobs_BV.gather(1, token_ids_B[:, None])[:, 0].isfinite().tolist()
    for row, chooser in enumerate(choosers):
        if finite[row] and not chooser.is_plain:
            history = histories[row] if chooser.needs_history else ()
            history_T = torch.tensor(list(history), dtype=torch.long, device=logits_BV.device)
            token_ids_B[row] = chooser.choose(logits_BV[row], history_T)
    logprobs_B = logprobs_BV.gather(1, token_ids_B[:, None])[:, 0]
    return [
        Choice(token_id, logprob) if ok else Choice(0, float("nan"))
        for token_id, logprob, ok in zip(token_ids_B.tolist(), logprobs_B.tolist(), finite, strict=True)
    ]


def _largest(logits_BV: Tensor) -> Tensor:
    """argmax per row; on the CPU NumPy's, which is ten times torch's speed."""
    if logits_BV.device.type == "cpu":
        return torch.from_numpy(logits_BV.numpy().argmax(axis=-1))
    return logits_BV.argmax(dim=-1)


def _seed(parameters: SamplingParameters) -> int:
    """The request's seed, or a fresh one that the answer will name."""
    return parameters.seed if parameters.seed is not None else secrets.randbelow(_MAX_FRESH_SEED)


def _processors(parameters: SamplingParameters, *, is_greedy: bool, vocab_size: int) -> LogitsProcessorList:
    """transformers' processors in transformers' order."""
    processors = LogitsProcessorList()
    if parameters.repetition_penalty is not None and parameters.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(parameters.repetition_penalty))
    if is_greedy:
        return processors
    if parameters.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(parameters.temperature))
    if parameters.top_k is not None and parameters.top_k < vocab_size:
        processors.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p is not None and parameters.top_p < 1.0:
        processors.append(TopPLogitsWarper(parameters.top_p))
    return processors
