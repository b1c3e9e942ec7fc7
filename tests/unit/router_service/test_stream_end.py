"""Which tokens of a stream wait for the next one."""

import pytest

from services.router_service.stream_end import StreamEnd
from services.shared.schemas.sequences import TokenEvent


def token(index: int, token_id: int = 5) -> TokenEvent:
    return TokenEvent(index=index, id=token_id, text="", logprob=0.0, special=False, gates={})


class TestStreamEnd:
    @pytest.mark.parametrize(
        ("event", "stop", "may_be"),
        [(token(0), (), False), (token(9), (), True), (token(3, 1), (), True), (token(0), ("x",), True)],
        ids=["in the middle", "the last allowed", "end of text", "stop strings"],
    )
    def test_only_what_may_be_the_last_waits(self, event: TokenEvent, stop: tuple[str, ...], may_be: bool) -> None:
        assert StreamEnd(10, {1}, stop=stop).may_be(event) is may_be
