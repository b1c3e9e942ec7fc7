"""The routing log as choices: shares of each token, the base model's included."""

import pytest

from services.router_service.live_choices import LoggedTokens, live_choices
from services.router_service.token_log import TokenLog, encode_token_log, unpack_token_log
from services.traces.analysis import analyse
from services.traces.statistics.results import AnalysisOptions, Part


def logged(
    domain: str | None, num_prompt: int, *gates: dict[str, float], ids: tuple[int, ...] | None = None
) -> LoggedTokens:
    token_ids = ids or tuple(range(1, len(gates) + 1))
    return LoggedTokens(domain, unpack_token_log(encode_token_log(TokenLog(num_prompt, token_ids, gates))))


class TestLiveChoices:
    def test_experts_are_those_of_the_release_then_base_then_others(self) -> None:
        live = live_choices([logged("code", 1, {"code": 0.75, "old": 0.25}, {"math": 1.0})], ["math", "code"])

        assert live.description.experts == ("math", "code", "base", "old")
        layer = live.layer(0)
        assert layer.experts.tolist() == [[1, 3], [0, -1]]
        assert layer.weights is not None
        assert layer.weights.tolist() == [[0.75, 0.25], [1.0, 0.0]]
        assert layer.phases.tolist() == [0, 1]
        assert layer.token_ids is not None
        assert layer.token_ids.tolist() == [1, 2]

    def test_what_experts_leave_is_the_base_models(self) -> None:
        live = live_choices(
            [logged(None, 0, {"code": 0.25}, {}, {"base": 0.5, "code": 0.5}, {"code": 0.99999})], ["code"]
        )

        layer = live.layer(0)
        assert layer.experts.tolist() == [[1, 0], [1, -1], [0, 1], [0, -1]]
        assert layer.weights is not None
        assert layer.weights.tolist() == [[0.75, 0.25], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]

    def test_requests_without_a_domain_are_unclassified(self) -> None:
        live = live_choices(
            [logged("a", 0, {"x": 1.0}), logged(None, 0, {"x": 1.0}), logged("a", 0, {"x": 1.0})], ["x"]
        )

        assert live.description.domains == ("a", "unclassified")
        assert live.layer(0).domains.tolist() == [0, 1, 0]
        assert live.layer(0).starts.tolist() == [0, 1, 2, 3]

    def test_ids_that_were_not_kept_are_none(self) -> None:
        live = live_choices([logged("a", 1, {"x": 1.0}, {"x": 1.0}, ids=(0, 0))], ["x"])

        assert not live.description.has_token_ids
        assert live.layer(0).token_ids is None

    def test_it_can_be_analysed(self) -> None:
        requests = [logged(domain, 1, *([{domain: 1.0}] * 9)) for domain in ("code", "math") for _ in range(4)]
        analysis = analyse(live_choices(requests, ["math", "code"]), options=AnalysisOptions(cache_tokens=0))

        frequency = analysis.layers[0].parts[Part.ALL].frequency
        assert frequency is not None
        assert frequency.share.value == ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0))

    def test_no_request_is_no_layer(self) -> None:
        live = live_choices([], ["code"])

        assert live.layers == []
        assert analyse(live).layers == ()
        with pytest.raises(KeyError):
            live.layer(0)
