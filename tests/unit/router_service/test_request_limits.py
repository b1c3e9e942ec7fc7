"""The settings' bounds on what one request may ask for."""

from typing import Any

import pytest

from services.router_service.generation_request import FieldNames, GenerationRequest, Prompt
from services.router_service.request_limits import check_limits
from services.shared.config import RouterServiceSettings
from services.shared.errors import InvalidRequest
from services.shared.schemas.sampling import SamplingParameters

SETTINGS = RouterServiceSettings(
    max_choices=4, max_new_tokens=10, max_stop_sequences=2, max_stop_characters=3, max_logit_bias=1
)


def request(*, num_choices: int = 1, max_new_tokens: int | None = None, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        prompt=Prompt(text="x"),
        sampling=SamplingParameters(**sampling),
        max_new_tokens=max_new_tokens,
        num_choices=num_choices,
        names=FieldNames(sampling="", max_new_tokens="max_tokens", num_choices="n"),
    )


class TestCheckLimits:
    def test_what_is_within_them_passes(self) -> None:
        check_limits(
            [request(num_choices=2, max_new_tokens=10, stop=("abc", "x"), logit_bias={5: 1.0}), request(num_choices=2)],
            SETTINGS,
        )

    @pytest.mark.parametrize(
        ("requests", "param"),
        [
            ([request(num_choices=5)], "n"),
            ([request(num_choices=3), request(num_choices=2)], "n"),
            ([request(), request(max_new_tokens=11)], "max_tokens"),
            ([request(stop=("a", "b", "c"))], "stop"),
            ([request(stop=("a", "abcd"))], "stop.1"),
            ([request(logit_bias={1: 1.0, 2: 1.0})], "logit_bias"),
        ],
        ids=["n", "n of several prompts", "max_tokens", "number of stops", "length of a stop", "logit_bias"],
    )
    def test_what_is_too_much_is_named(self, requests: list[GenerationRequest], param: str) -> None:
        with pytest.raises(InvalidRequest) as raised:
            check_limits(requests, SETTINGS)

        assert raised.value.param == param


class TestSeeds:
    def test_choices_have_seeds_of_their_own_that_can_be_asked_for_again(self) -> None:
        wanted = request(seed=7, do_sample=True)

        seeds = [wanted.sampling_of(choice, max_new_tokens=3).seed for choice in range(3)]

        assert seeds == [7, 8, 9]
        assert request(seed=9, do_sample=True).sampling_of(0, max_new_tokens=3).seed == seeds[2]

    def test_without_a_seed_the_replica_draws_one(self) -> None:
        assert request().sampling_of(1, max_new_tokens=3).seed is None
