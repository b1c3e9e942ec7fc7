"""Choosing tokens: transformers' meaning, one generator per sequence, logprobs of the raw logits."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from services.expert_service.sampling import TokenChooser, choose_tokens
from services.shared.schemas.sampling import SamplingParameters

VOCAB_SIZE = 50
CPU = torch.device("cpu")


def chooser(**parameters: Any) -> TokenChooser:
    return TokenChooser(SamplingParameters(**parameters), vocab_size=VOCAB_SIZE, device=CPU)


@pytest.fixture(name="logits_BV")
def logits() -> Tensor:
    return torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))


class TestChooseTokens:
    @pytest.mark.parametrize("parameters", [{}, {"do_sample": True, "temperature": 0.0}, {"temperature": 0.5}])
    def test_greedy_takes_the_largest_logit(self, logits_BV: Tensor, parameters: dict[str, Any]) -> None:
        choices = choose_tokens(logits_BV, [chooser(**parameters)] * 3, [()] * 3)
        assert [choice.token_id for choice in choices] == logits_BV.argmax(-1).tolist()

    def test_reports_the_log_probability_under_the_raw_logits(self, logits_BV: Tensor) -> None:
        hot = chooser(do_sample=True, temperature=3.0, top_k=5, seed=1)
        choices = choose_tokens(logits_BV, [hot] * 3, [()] * 3)
        logprobs_BV = logits_BV.log_softmax(-1)
        for row, choice in enumerate(choices):
            assert choice.logprob == pytest.approx(logprobs_BV[row, choice.token_id].item(), abs=1e-5)

    def test_a_seed_gives_the_same_draws_whoever_else_draws(self, logits_BV: Tensor) -> None:
        def draws(neighbours: int) -> list[int]:
            mine = chooser(do_sample=True, temperature=2.0, seed=5)
            others = [chooser(do_sample=True, seed=index) for index in range(neighbours)]
            rows = logits_BV[:1].expand(neighbours + 1, -1)
            return [choose_tokens(rows, [*others, mine], [()] * (neighbours + 1))[-1].token_id for _ in range(12)]

        assert draws(0) == draws(2)
        assert len(set(draws(0))) > 1

    def test_top_k_and_top_p_keep_the_likeliest(self, logits_BV: Tensor) -> None:
        best = logits_BV[0].topk(3).indices.tolist()
        for parameters in ({"top_k": 3}, {"top_p": 1e-6}):
            narrow = chooser(do_sample=True, temperature=5.0, seed=3, **parameters)
            drawn = {choose_tokens(logits_BV[:1], [narrow], [()])[0].token_id for _ in range(40)}
            assert drawn <= set(best)
        assert drawn == {best[0]}

    def test_a_repetition_penalty_reads_the_history(self, logits_BV: Tensor) -> None:
        first = int(logits_BV[0].argmax())
        choice = choose_tokens(logits_BV[:1].abs(), [chooser(repetition_penalty=10.0)], [[first]])[0]
        assert choice.token_id != first

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_numbers_that_are_not_finite_are_named(self, logits_BV: Tensor, bad: float) -> None:
        logits_BV[1, 7] = bad
        choices = choose_tokens(logits_BV, [chooser(do_sample=True, seed=1)] * 3, [()] * 3)
        assert [math.isnan(choice.logprob) for choice in choices] == [False, True, False]

    def test_without_a_seed_every_sequence_gets_its_own(self) -> None:
        seeds = {chooser(do_sample=True).seed for _ in range(20)}
        assert len(seeds) > 15
        assert chooser().seed is None
