"""Prompts answered in batches, with the KV cache of transformers' own `generate`, and what was recorded meanwhile.

A row of what is kept is a token that was read: the prompt's, then those generated, which are all read once. The end
of a text is not among them: nothing is asked of it. Shape letters: B prompts, T columns, padding on the left.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from services.shared.errors import JobFailed
from services.trainer_worker.progress import TrainingStopped
from services.trainer_worker.tracing.recording import Choices, Heard, Recorder, TokenizedPrompt


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: temperature 0 takes the likeliest. Texts end at one of `eos_ids`."""

    temperature: float
    seed: int
    eos_ids: frozenset[int]


@dataclass(frozen=True)
class RecordedSequence:
    """A prompt with its answer: the tokens that were read, and who was chosen for each; by layer [T, K]."""

    token_ids_T: NDArray[np.int64]
    num_prompt_tokens: int
    layers: Mapping[int, Choices]


def answer(
    model: PreTrainedModel,
    prompts: Sequence[TokenizedPrompt],
    recorder: Recorder,
    sampling: Sampling,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[RecordedSequence]:
    """One batch. The same prompts, in the same order, with the same seed give the same answers.

    Raises TrainingStopped within a token of `should_stop()`.
    """
    with recorder.recording(prompts) as heard:
        token_ids_BT, num_padding = generate(model, prompts, sampling, should_stop=should_stop)
    return taken_apart(prompts, token_ids_BT.cpu().numpy(), num_padding, heard, sampling)


def generate(
    model: PreTrainedModel,
    prompts: Sequence[TokenizedPrompt],
    sampling: Sampling,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, list[int]]:
    """token_ids_BT of prompts and answers, the last column of which was not read, and how much of each row is padding
    before its prompt."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    padding = min(sampling.eos_ids, default=0)
    num_padding = [longest - len(prompt.token_ids) for prompt in prompts]
    rows = [[padding] * num + list(prompt.token_ids) for num, prompt in zip(num_padding, prompts, strict=True)]
    token_ids_BT = torch.tensor(rows, device=model.device)
    mask_BT = (torch.arange(longest) >= torch.tensor(num_padding)[:, None]).long().to(model.device)
    # One more than asked for: what is generated last is not read.
    ends_B = torch.tensor([longest + prompt.max_tokens + 1 for prompt in prompts], device=model.device)
    config = GenerationConfig(
        max_length=int(ends_B.max()),
        eos_token_id=sorted(sampling.eos_ids) or None,
        pad_token_id=padding,
        do_sample=sampling.temperature > 0.0,
        **({"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0} if sampling.temperature > 0.0 else {}),
    )
    run: Any = model.generate
    with torch.inference_mode(), torch.random.fork_rng(_devices(model)), _without_own_sampling(model):
        torch.manual_seed(sampling.seed)
        output_BT = run(
            input_ids=token_ids_BT,
            attention_mask=mask_BT,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([_Listening(should_stop), _Long(ends_B)]),
        )
    return output_BT, num_padding


class _Long(StoppingCriteria):
    """Ends each row at its own length."""

    def __init__(self, ends_B: Tensor) -> None:
        self._ends_B = ends_B

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Any:
        """Which rows are done."""
        return input_ids.shape[1] >= self._ends_B


class _Listening(StoppingCriteria):
    """Leaves generation where it is when the job should stop."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Any:
        """No row is done; asked after every token."""
        if self._should_stop():
            raise TrainingStopped("the trace was stopped")
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def _without_own_sampling(model: PreTrainedModel) -> Iterator[None]:
    """What the model's own files say of sampling fills no gap."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _devices(model: nn.Module) -> list[torch.device]:
    """Whose random state is kept, beside the CPU's."""
    return [device for device in {parameter.device for parameter in model.parameters()} if device.type == "cuda"]


def taken_apart(
    prompts: Sequence[TokenizedPrompt],
    token_ids_BT: NDArray[np.int64],
    num_padding: Sequence[int],
    heard: Heard,
    sampling: Sampling,
) -> list[RecordedSequence]:
    """What `generate` returned and a recorder has heard of it, sequence by sequence.

    Raises JobFailed where gates were not heard at every token.
    """
    num_read = token_ids_BT.shape[1] - 1
    layers = heard.layers()
    for layer, choices in layers.items():
        if choices.experts.shape[:2] != (len(prompts), num_read):
            raise JobFailed(
                f"The gate of layer {layer} was heard at {choices.experts.shape[1]} places of each text and not at "
                f"all {num_read}: this model's experts see only a part of the tokens, and cannot be traced.",
                code="not_traceable",
            )
    if not layers:
        raise JobFailed("No gate of this model was asked while it generated.", code="not_traceable")
    eos_ids = list(sampling.eos_ids)
    sequences = []
    for row, (prompt, start) in enumerate(zip(prompts, num_padding, strict=True)):
        begin = start + len(prompt.token_ids)
        generated = token_ids_BT[row, begin : min(begin + prompt.max_tokens, num_read)]
        ends = np.flatnonzero(np.isin(generated, eos_ids))
        columns = slice(start, begin + int(ends[0]) if len(ends) else begin + len(generated))
        sequences.append(
            RecordedSequence(
                token_ids_T=token_ids_BT[row, columns],
                num_prompt_tokens=len(prompt.token_ids),
                layers={
                    layer: Choices(choices.experts[row, columns], choices.weights[row, columns])
                    for layer, choices in layers.items()
                },
            )
        )
    return sequences
