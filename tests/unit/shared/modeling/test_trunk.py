"""The trunk as an encoder, the base model's own text, and the learned router's network."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from numpy.testing import assert_allclose

from services.shared.errors import InvalidRequest
from services.shared.modeling.base_row import sample_base_text
from services.shared.modeling.learned_gate import LearnedGate, score_logits
from services.shared.modeling.learned_router import LearnedRouter, dense_weights
from services.shared.modeling.trunk import gather_trunk_statistics, hidden_size_of, smooth, trunk_states
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import GateType
from tests.unit.shared.modeling.tiny_models import FAMILIES, VOCAB_SIZE, tiny_model


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


class TestTrunkStates:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("tap_layer", [0, 1, 2])
    def test_are_the_models_own_hidden_states(self, family: str, tap_layer: int) -> None:
        model, ids_BT = tiny_model(family), random_ids(2, 12)

        states_BTD = trunk_states(model, ids_BT, tap_layer)

        expected_BTD = model(input_ids=ids_BT, output_hidden_states=True).hidden_states[tap_layer]
        assert_allclose(states_BTD.numpy(), expected_BTD.detach().numpy(), atol=1e-6)
        assert hidden_size_of(model) == states_BTD.shape[-1]

    def test_leave_the_model_as_it_was(self) -> None:
        model, ids_BT = tiny_model(), random_ids(1, 8)
        before = model(input_ids=ids_BT).logits

        trunk_states(model, ids_BT, 1)

        assert torch.equal(model(input_ids=ids_BT).logits, before)

    def test_a_tap_above_the_model_is_refused(self) -> None:
        with pytest.raises(InvalidRequest, match=r"0\.\.2"):
            trunk_states(tiny_model(), random_ids(1, 4), 3)


class TestGatherTrunkStatistics:
    def test_are_the_moments_of_the_smoothed_states(self) -> None:
        model, ids = tiny_model(), random_ids(1, 60)

        statistics = gather_trunk_statistics(model, ids.tolist(), tap_layer=1)

        smoothed_TF = smooth(trunk_states(model, ids, 1)[0])
        assert statistics.count == 60
        assert_allclose(statistics.mean_F, smoothed_TF.mean(axis=0), atol=1e-6)
        assert_allclose(statistics.covariance_FF, np.cov(smoothed_TF, rowvar=False, bias=True), atol=1e-6)

    def test_prefixes_are_read_but_not_counted(self) -> None:
        model = tiny_model()
        streams = [random_ids(30, seed=seed).tolist() for seed in range(20)]

        plain = gather_trunk_statistics(model, streams, tap_layer=1)
        prefixed = gather_trunk_statistics(model, streams, tap_layer=1, prefixes=[[5] * 30])

        assert plain.count == prefixed.count == 600
        assert not np.allclose(plain.mean_F, prefixed.mean_F)


class TestSampleBaseText:
    TOKENIZER = Tokenizer(
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2})),
        eos_ids=frozenset({2}),
        special_tokens={"bos_token": "<s>"},
        max_context=64,
        vocab_size=VOCAB_SIZE,
    )

    def test_documents_begin_with_the_begin_token_and_hold_no_end_token(self) -> None:
        texts = sample_base_text(tiny_model(), self.TOKENIZER, num_tokens=3000, seed=0)

        assert sum(len(text) for text in texts) >= 3000
        assert all(text[0] == 1 and 2 not in text and len(text) <= 64 for text in texts)

    def test_are_a_function_of_the_seed(self) -> None:
        texts = [sample_base_text(tiny_model(), self.TOKENIZER, num_tokens=500, seed=seed) for seed in (0, 0, 1)]

        assert texts[0] == texts[1] != texts[2]

    def test_are_each_their_own_though_others_have_ended_and_left_the_batch(self) -> None:
        model, batch_sizes = tiny_model(), set()

        def end_or_go_on_with_the_likeliest(_module: Any, _args: Any, kwargs: Any, output: Any) -> None:
            batch_sizes.add(len(output.logits))
            if kwargs["past_key_values"] is not None:  # the first token is drawn as it comes
                output.logits[..., 2] = -math.inf
                output.logits *= 1e4
                output.logits[..., 2] = output.logits.logsumexp(dim=-1) - 2.0

        hook = model.register_forward_hook(end_or_go_on_with_the_likeliest, with_kwargs=True)
        texts = sample_base_text(model, self.TOKENIZER, num_tokens=1000, seed=0)
        hook.remove()

        assert len(batch_sizes) > 3
        assert len({text[1] for text in texts if len(text) > 1}) > 10
        for text in texts:
            logits_TV = model(input_ids=torch.tensor([text])).logits[0]
            logits_TV[:, 2] = -math.inf
            assert text[2:] == logits_TV.argmax(dim=-1)[1:-1].tolist()

    def test_follow_the_models_own_distribution(self) -> None:
        model = tiny_model()

        texts = sample_base_text(model, self.TOKENIZER, num_tokens=40_000, seed=0)

        second_V = np.bincount([text[1] for text in texts if len(text) > 1], minlength=VOCAB_SIZE)
        expected_V = model(input_ids=torch.tensor([[1]])).logits[0, 0].softmax(dim=-1).detach().numpy()
        expected_V[2] = 0.0
        assert_allclose(second_V / second_V.sum(), expected_V / expected_V.sum(), atol=0.05)


class TestLearnedRouter:
    def network(self) -> LearnedRouter:
        torch.manual_seed(0)
        network = LearnedRouter(10, 4, use_bias=True, dropout=0.1)
        torch.nn.init.normal_(network.score.weight)
        torch.nn.init.normal_(network.score.bias)
        network.standardise(np.random.default_rng(0).normal(3.0, 2.0, size=(50, 10)))
        return network.train(mode=False)

    def test_serving_computes_what_was_trained(self) -> None:
        network, features_NF = self.network(), np.random.default_rng(1).normal(3.0, 2.0, size=(20, 10))

        trained_NC = network(torch.from_numpy(features_NF).float()).detach().numpy()

        assert_allclose(network.to_gate().logits(features_NF), trained_NC, atol=1e-5)

    def test_all_columns_start_equal(self) -> None:
        network = LearnedRouter(10, 4, use_bias=False, dropout=0.0)

        weights_NC = dense_weights(network(torch.randn(5, 10)), GateType.TOPK)

        assert weights_NC.tolist() == [[0.25] * 4] * 5
        assert network.score.bias is None

    @pytest.mark.parametrize("gate_type", list(GateType))
    def test_dense_weights_are_normalised_scores(self, gate_type: GateType) -> None:
        logits_NC = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

        weights_NC = dense_weights(logits_NC, gate_type).numpy()

        scores_NC = score_logits(logits_NC.numpy(), gate_type)
        assert_allclose(weights_NC, scores_NC / scores_NC.sum(axis=1, keepdims=True), rtol=1e-5)

    def test_survives_the_trip_through_a_file(self, tmp_path: Path) -> None:
        gate, features_NF = self.network().to_gate(), np.random.default_rng(1).normal(size=(3, 10))

        gate.save(tmp_path / "router.safetensors")

        loaded = LearnedGate.load(tmp_path / "router.safetensors")
        assert_allclose(loaded.logits(features_NF), gate.logits(features_NF), atol=1e-5)
