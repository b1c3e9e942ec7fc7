"""Batches with the KV cache: every token once, at its place, whatever stands beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from services.trainer_worker.progress import TrainingStopped
from services.trainer_worker.tracing.generation import RecordedSequence, Sampling, answer
from services.trainer_worker.tracing.kept_batches import KeptBatches
from services.trainer_worker.tracing.native_gates import find_gates, listening
from services.trainer_worker.tracing.native_recorder import NativeRecorder
from services.trainer_worker.tracing.recording import Choices, TokenizedPrompt, by_falling_weight
from tests.unit.trainer_worker.tracing.native_models import FAMILIES, LARGE, tiny_model

EOS: Final = 1
SAMPLED: Final = Sampling(temperature=1.0, seed=3, eos_ids=frozenset({EOS}))
GREEDY: Final = Sampling(temperature=0.0, seed=0, eos_ids=frozenset())
PROMPTS: Final = [
    TokenizedPrompt("a", "code", "", [5, 6, 7], max_tokens=6),
    TokenizedPrompt("b", "code", "", [9, 8, 7, 6, 5, 4, 3], max_tokens=4),
    TokenizedPrompt("c", "math", "", [44], max_tokens=5),
]


@torch.inference_mode()
def read_whole(model: PreTrainedModel, token_ids: Sequence[int]) -> dict[int, Choices]:
    """The choices for a text that is read at once, alone and without a cache."""
    with listening(find_gates(model)) as heard:
        model(input_ids=torch.tensor([list(token_ids)]), use_cache=False)
    return {
        layer: by_falling_weight(one.experts_NK.numpy(), one.weights_NK.float().numpy())
        for layer, [one] in heard.items()
    }


def assert_alike(sequence: RecordedSequence, model: PreTrainedModel) -> None:
    """Recorded while generating, and when all of it is read at once."""
    for layer, whole in read_whole(model, sequence.token_ids_T.tolist()).items():
        np.testing.assert_array_equal(sequence.layers[layer].experts, whole.experts)
        np.testing.assert_allclose(sequence.layers[layer].weights, whole.weights, atol=2e-4)


class TestEveryFamily:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_generates_with_the_choices_of_a_text_that_is_read_at_once(self, family: str) -> None:
        model = tiny_model(family)

        sequences = answer(model, PROMPTS, NativeRecorder(model), SAMPLED)

        for prompt, sequence in zip(PROMPTS, sequences, strict=True):
            assert sequence.num_prompt_tokens == len(prompt.token_ids)
            assert sequence.token_ids_T[: len(prompt.token_ids)].tolist() == list(prompt.token_ids)
            assert_alike(sequence, model)

    def test_a_model_of_24_layers_with_32_experts_of_which_4_speak(self) -> None:
        family, sizes = LARGE
        model = tiny_model(family, **sizes)

        [sequence, _] = answer(model, PROMPTS[:2], NativeRecorder(model), GREEDY)

        assert sorted(sequence.layers) == list(range(24))
        assert sequence.layers[23].experts.shape == (9, 4)
        assert {len(set(row)) for row in sequence.layers[23].experts.tolist()} == {4}
        assert sequence.layers[23].experts.max() < 32
        assert_alike(sequence, model)


class TestAnswers:
    def test_are_as_long_as_each_prompt_may_have_them_and_read_to_the_last_token(self) -> None:
        model = tiny_model("mixtral")

        sequences = answer(model, PROMPTS, NativeRecorder(model), GREEDY)

        assert [len(sequence.token_ids_T) for sequence in sequences] == [3 + 6, 7 + 4, 1 + 5]
        assert [len(sequence.layers[0].experts) for sequence in sequences] == [9, 11, 6]

    def test_end_before_the_end_of_text(self) -> None:
        model = tiny_model("mixtral")
        whole = answer(model, PROMPTS, NativeRecorder(model), GREEDY)[0].token_ids_T.tolist()
        eos = Sampling(temperature=0.0, seed=0, eos_ids=frozenset({whole[5]}))

        [shorter, *_] = answer(model, PROMPTS, NativeRecorder(model), eos)

        assert shorter.token_ids_T.tolist() == whole[: whole.index(whole[5], 3)]

    def test_follow_from_the_seed(self) -> None:
        model = tiny_model("qwen3_moe")
        recorder = NativeRecorder(model)
        texts = [
            [one.token_ids_T.tolist() for one in answer(model, PROMPTS, recorder, Sampling(1.0, seed, frozenset()))]
            for seed in (3, 3, 4)
        ]

        assert texts[0] == texts[1] != texts[2]

    def test_leave_the_random_state_alone(self) -> None:
        model = tiny_model("olmoe")
        before = torch.random.get_rng_state()

        answer(model, PROMPTS, NativeRecorder(model), SAMPLED)

        assert torch.equal(before, torch.random.get_rng_state())

    def test_stop_within_a_token(self) -> None:
        model = tiny_model("mixtral")
        asked: list[int] = []

        def should_stop() -> bool:
            asked.append(1)
            return len(asked) == 3

        with pytest.raises(TrainingStopped):
            answer(model, PROMPTS, NativeRecorder(model), GREEDY, should_stop=should_stop)
        assert len(asked) == 3


class TestRanking:
    def test_is_by_falling_weight_and_without_those_that_have_none(self) -> None:
        choices = by_falling_weight(np.array([[[4, 0, 2]]]), np.array([[[0.25, 0.0, 0.75]]]))

        assert choices.experts.tolist() == [[[2, 4]]]
        assert choices.weights.tolist() == [[[0.75, 0.25]]]

    def test_tokens_may_have_fewer(self) -> None:
        choices = by_falling_weight(np.array([[[4, 0], [1, 2]]]), np.array([[[1.0, 0.0], [0.5, 0.5]]]))

        assert choices.experts.tolist() == [[[4, -1], [1, 2]]]


class TestKeptBatches:
    def test_come_back(self, tmp_path: Path) -> None:
        model = tiny_model("deepseek_v3")
        sequences = answer(model, PROMPTS, NativeRecorder(model), SAMPLED)
        kept = KeptBatches(tmp_path / "batches")

        kept.keep(3, sequences)

        assert (kept.has(3), kept.has(2)) == (True, False)
        for before, after in zip(sequences, kept.read(3), strict=True):
            assert before.token_ids_T.tolist() == after.token_ids_T.tolist()
            assert before.num_prompt_tokens == after.num_prompt_tokens
            assert sorted(before.layers) == sorted(after.layers)
            assert before.layers[2].experts.tolist() == after.layers[2].experts.tolist()
            assert before.layers[2].weights.tolist() == after.layers[2].weights.tolist()
