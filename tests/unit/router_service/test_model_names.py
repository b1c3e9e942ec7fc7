"""What a model's name stands for."""

import pytest

from services.router_service.generation_request import Speakers
from services.router_service.model_names import (
    NAMELESS,
    FineTunedName,
    expert_model,
    fine_tuned_model,
    read_fine_tuned,
    speakers_of,
)
from services.router_service.schemas.openai_requests import ACTIVE_MODEL
from services.shared.errors import NotFound

REGISTERED = ("math", "code")


class TestSpeakersOf:
    @pytest.mark.parametrize(
        ("model", "speakers"),
        [
            (ACTIVE_MODEL, Speakers()),
            ("org/llama", Speakers(weights={"base": 1.0})),
            ("base", Speakers(weights={"base": 1.0})),
            ("org/llama:math", Speakers(weights={"math": 1.0})),
            ("code", Speakers(weights={"code": 1.0})),
            ("release-12", Speakers(release=12)),
            *((name, Speakers()) for name in sorted(NAMELESS)),
        ],
    )
    def test_every_form_of_name(self, model: str, speakers: Speakers) -> None:
        assert speakers_of(model, base="org/llama", registered=REGISTERED) == speakers

    @pytest.mark.parametrize("model", ["", "gpt-4", "org/llama:chess", "other:math", "release-0", "release-", "12"])
    def test_what_stands_for_nothing_is_not_found(self, model: str) -> None:
        with pytest.raises(NotFound) as raised:
            speakers_of(model, base="org/llama", registered=REGISTERED)

        assert (raised.value.error_code, raised.value.param) == ("model_not_found", "model")

    def test_a_slip_is_answered_with_the_name_that_was_meant(self) -> None:
        with pytest.raises(NotFound, match="'org/llama:math'"):
            speakers_of("org/llama:mth", base="org/llama", registered=REGISTERED)

    def test_junk_is_not_echoed_at_length(self) -> None:
        with pytest.raises(NotFound) as raised:
            speakers_of("x" * 5000, base="b", registered=REGISTERED)

        assert len(raised.value.message) < 300

    def test_an_experts_model_leads_back_to_it(self) -> None:
        assert speakers_of(expert_model("b", "math"), base="b", registered=REGISTERED).weights == {"math": 1.0}


class TestFineTuned:
    @pytest.mark.parametrize("step", [None, 0, 120])
    @pytest.mark.parametrize("base", ["demo", "org/llama-3.2", "odd:name"])
    def test_a_name_leads_back_to_the_job_and_the_step(self, base: str, step: int | None) -> None:
        model = fine_tuned_model(base, "my-sums", f"job-{'0123456789abcdef' * 2}", step=step)

        assert read_fine_tuned(model, base=base) == FineTunedName("my-sums", "0123456789ab", step)

    @pytest.mark.parametrize(
        "model",
        [
            "ft:",
            "ft:demo",
            "ft:demo:sums",
            "ft:demo:sums:0123",
            "ft:other:sums:0123456789ab",
            "ft:demo:sums:0123456789ab:ckpt-step-",
            "ft:demo:sums:0123456789ab:ckpt-step-1x",
            "ft:demo:Sums:0123456789ab",
            "ft:demo:sums:0123456789ab\n",
            "sums:0123456789ab",
        ],
    )
    def test_what_is_no_such_name_is_not_found(self, model: str) -> None:
        with pytest.raises(NotFound) as raised:
            read_fine_tuned(model, base="demo")

        assert raised.value.error_code == "model_not_found"
