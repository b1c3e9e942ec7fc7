"""Choosing tokens: transformers' meaning, one generator per sequence, logprobs of the raw logits."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TypicalLogitsWarper

from services.expert_service.sampling import OccurrencePenalty, TokenChooser, choose_tokens
from services.shared.errors import InvalidRequest
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

    def test_tokens_are_drawn_as_often_as_they_are_probable(self) -> None:
        probabilities_V = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
        drawing = TokenChooser(SamplingParameters(do_sample=True, seed=4), vocab_size=5, device=CPU)
        logits_V = probabilities_V.clamp(min=1e-30).log()
        draws = [drawing.choose(logits_V, torch.tensor([], dtype=torch.long)) for _ in range(4000)]
        shares = torch.tensor(draws).bincount(minlength=5) / len(draws)
        # Five standard deviations of a share of 4,000 draws.
        assert torch.allclose(shares, probabilities_V, atol=0.04)
        assert set(draws) == {0, 2, 3}

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


class TestPenalties:
    def test_occurrence_penalties_are_openais_formula_over_generated_tokens(self, logits_BV: Tensor) -> None:
        prompt, generated = [7, 7, 8], [3, 3, 3, 9]
        expected_V = logits_BV[0].clone()
        for token_id in set(generated):
            expected_V[token_id] -= 0.75 * generated.count(token_id) + 1.5
        penalty = OccurrencePenalty(frequency=0.75, presence=1.5, num_prompt=len(prompt))

        penalised_V = penalty(torch.tensor([prompt + generated]), logits_BV[:1])[0]

        assert torch.allclose(penalised_V, expected_V)

    def test_a_penalty_moves_a_greedy_choice_off_what_was_generated_but_not_off_the_prompt(self) -> None:
        logits_BV = torch.zeros(1, VOCAB_SIZE)
        logits_BV[0, 4], logits_BV[0, 5] = 2.0, 1.0

        def choice(history: list[int], num_prompt: int) -> int:
            greedy = TokenChooser(
                SamplingParameters(presence_penalty=1.5), vocab_size=VOCAB_SIZE, device=CPU, num_prompt=num_prompt
            )
            return choose_tokens(logits_BV, [greedy], [history])[0].token_id

        assert choice([4], num_prompt=0) == 5
        assert choice([4], num_prompt=1) == 4

    def test_a_bias_forces_and_forbids(self, logits_BV: Tensor) -> None:
        best = int(logits_BV[0].argmax())
        forced, forbidden = chooser(logit_bias={11: 100.0}), chooser(logit_bias={best: -100.0})
        drawn = chooser(logit_bias={11: 100.0}, do_sample=True, seed=1)
        choices = choose_tokens(logits_BV[:1].expand(3, -1), [forced, forbidden, drawn], [()] * 3)
        assert [choices[0].token_id, choices[2].token_id] == [11, 11]
        assert choices[1].token_id == int(logits_BV[0].topk(2).indices[1])
        assert choices[0].logprob == pytest.approx(logits_BV[0].log_softmax(-1)[11].item(), abs=1e-5)

    def test_a_bias_on_a_token_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(InvalidRequest, match=r"0\.\.49"):
            chooser(logit_bias={VOCAB_SIZE: 1.0})

    @pytest.mark.parametrize(
        ("parameters", "warper"),
        [({"min_p": 0.4}, MinPLogitsWarper(0.4)), ({"typical_p": 0.3}, TypicalLogitsWarper(0.3))],
        ids=["min_p", "typical_p"],
    )
    def test_other_filters_are_transformers_own(
        self, logits_BV: Tensor, parameters: dict[str, Any], warper: Any
    ) -> None:
        kept = set(torch.nonzero(warper(None, logits_BV[:1].clone())[0].isfinite())[:, 0].tolist())
        filtered = chooser(do_sample=True, seed=2, **parameters)
        drawn = {choose_tokens(logits_BV[:1], [filtered], [()])[0].token_id for _ in range(200)}
        assert drawn <= kept
        assert 0 < len(kept) < VOCAB_SIZE


class TestTopLogprobs:
    def test_the_likeliest_come_best_first_for_those_who_ask(self, logits_BV: Tensor) -> None:
        choices = choose_tokens(logits_BV, [chooser(num_top_logprobs=4), chooser(), chooser()], [()] * 3)

        best = logits_BV[0].log_softmax(-1).topk(4)
        assert [token_id for token_id, _ in choices[0].top] == best.indices.tolist()
        assert [logprob for _, logprob in choices[0].top] == pytest.approx(best.values.tolist())
        assert choices[0].top[0] == (choices[0].token_id, choices[0].logprob)
        assert choices[1].top == choices[2].top == ()

    def test_there_are_never_more_than_tokens(self) -> None:
        few = TokenChooser(SamplingParameters(num_top_logprobs=20), vocab_size=5, device=CPU)
        assert len(choose_tokens(torch.zeros(1, 5), [few], [()])[0].top) == 5
