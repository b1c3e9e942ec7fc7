"""The next token of each sequence: greedy rows at once, sampled rows one by one with a generator of their own.

A sequence's choices depend on its own logits, parameters and seed alone, never on its neighbours. The log-probability
reported is that of the chosen token under the model's raw logits (log-softmax before temperature, penalties and
filters), as TGI reports it. Processors are transformers' own, so that they mean what they mean there.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TypicalLogitsWarper,
)

from services.expert_service.nucleus import NucleusWarper
from services.shared.errors import InvalidRequest
from services.shared.schemas.sampling import SamplingParameters
from services.shared.schemas.sequences import TopLogprobs

_MAX_FRESH_SEED: Final = 2**31


@dataclass(frozen=True)
class Choice:
    """A chosen token and, if asked for, the likeliest ones; `logprob` is NaN when the numbers were not finite."""

    token_id: int
    logprob: float
    top: TopLogprobs = ()


class OccurrencePenalty(LogitsProcessor):
    """OpenAI's penalties: a token generated c times loses c * frequency + [c > 0] * presence of its logit.

    The first `num_prompt` tokens of the history do not count.
    """

    def __init__(self, *, frequency: float, presence: float, num_prompt: int) -> None:
        self._frequency = frequency
        self._presence = presence
        self._num_prompt = num_prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [1, V] after the penalties; ids [1, T]."""
        counts_V = input_ids[0, self._num_prompt :].bincount(minlength=scores.shape[-1])
        return scores - self._frequency * counts_V - self._presence * (counts_V > 0)


class TokenChooser:
    """How one sequence chooses, after a prompt of `num_prompt` tokens. Stateful only in its generator.

    Raises InvalidRequest when the parameters name tokens that the model has not got.
    """

    def __init__(
        self, parameters: SamplingParameters, *, vocab_size: int, device: torch.device, num_prompt: int = 0
    ) -> None:
        check_biased_tokens(parameters, vocab_size)
        self.is_greedy = not parameters.do_sample or parameters.temperature == 0.0
        self.seed = None if self.is_greedy else _seed(parameters)
        self.num_top_logprobs = min(parameters.num_top_logprobs, vocab_size)
        self._processors = _penalties(parameters, num_prompt=num_prompt)
        if not self.is_greedy:
            self._processors.extend(_warpers(parameters, vocab_size=vocab_size))
        self._generator: torch.Generator | None = None
        if self.seed is not None:
            self._generator = torch.Generator(device=device)
            self._generator.manual_seed(self.seed)

    @property
    def needs_history(self) -> bool:
        """Whether earlier tokens change the choice."""
        return any(isinstance(processor, _READS_HISTORY) for processor in self._processors)

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
        return self._draw(scores_1V[0])

    def _draw(self, scores_V: Tensor) -> int:
        """A token by its probability: one random number on the cumulative scale; multinomial would draw V of them."""
        cumulative_V = scores_V.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        place = torch.rand(1, generator=self._generator, dtype=torch.float64, device=scores_V.device) * cumulative_V[-1]
        token_id = int(torch.searchsorted(cumulative_V, place, right=True))
        return token_id if token_id < len(scores_V) else int(scores_V.argmax())


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
        Choice(token_id, logprob, top_logprobs(logprobs_BV[row], choosers[row].num_top_logprobs))
        if finite[row]
        else Choice(0, float("nan"))
        for row, (token_id, logprob) in enumerate(zip(token_ids_B.tolist(), logprobs_B.tolist(), strict=True))
    ]


def top_logprobs(logprobs_V: Tensor, count: int) -> TopLogprobs:
    """Id and log-probability of the `count` likeliest tokens, best first."""
    if not count:
        return ()
    best = logprobs_V.topk(min(count, len(logprobs_V)))
    return tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def check_biased_tokens(parameters: SamplingParameters, vocab_size: int) -> None:
    """Raise InvalidRequest for a bias on a token that the model has not got."""
    highest = max(parameters.logit_bias, default=0)
    if highest >= vocab_size:
        raise InvalidRequest(
            f"logit_bias names token {highest}; the model's tokens are 0..{vocab_size - 1}.", param="logit_bias"
        )


def _largest(logits_BV: Tensor) -> Tensor:
    """argmax per row; on the CPU NumPy's, which is ten times torch's speed."""
    if logits_BV.device.type == "cpu":
        return torch.from_numpy(logits_BV.numpy().argmax(axis=-1))
    return logits_BV.argmax(dim=-1)


def _seed(parameters: SamplingParameters) -> int:
    """The request's seed, or a fresh one that the answer will name."""
    return parameters.seed if parameters.seed is not None else secrets.randbelow(_MAX_FRESH_SEED)


def _penalties(parameters: SamplingParameters, *, num_prompt: int) -> LogitsProcessorList:
    """What also changes a greedy choice."""
    processors = LogitsProcessorList()
    if any(parameters.logit_bias.values()):
        biases = {(token_id,): bias for token_id, bias in parameters.logit_bias.items()}
        processors.append(SequenceBiasLogitsProcessor(biases))  # type: ignore[arg-type]  # a dict is taken as well
    if parameters.repetition_penalty is not None and parameters.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(parameters.repetition_penalty))
    if parameters.frequency_penalty or parameters.presence_penalty:
        processors.append(
            OccurrencePenalty(
                frequency=parameters.frequency_penalty, presence=parameters.presence_penalty, num_prompt=num_prompt
            )
        )
    return processors


def _warpers(parameters: SamplingParameters, *, vocab_size: int) -> LogitsProcessorList:
    """What shapes the distribution that is drawn from, in transformers' order."""
    warpers = LogitsProcessorList()
    if parameters.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(parameters.temperature))
    if parameters.top_k is not None and parameters.top_k < vocab_size:
        warpers.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p is not None and parameters.top_p < 1.0:
        warpers.append(NucleusWarper(parameters.top_p))
    if parameters.min_p:
        warpers.append(MinPLogitsWarper(parameters.min_p))
    if parameters.typical_p is not None and parameters.typical_p < 1.0:
        warpers.append(TypicalLogitsWarper(parameters.typical_p))
    return warpers


_READS_HISTORY: Final = (RepetitionPenaltyLogitsProcessor, OccurrencePenalty)
