"""The compact form of per-token experts and weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router_service.token_log import TokenLog, decode_token_log, encode_token_log

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
WEIGHTS = st.floats(-10, 10, width=32).filter(bool)
TOKENS = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.dictionaries(NAMES, WEIGHTS, max_size=6)), max_size=40)


class TestTokenLog:
    @given(TOKENS, st.data())
    def test_what_goes_in_comes_out(self, tokens: list[tuple[int, dict[str, float]]], data: st.DataObject) -> None:
        log = TokenLog(
            num_prompt_tokens=data.draw(st.integers(0, len(tokens))),
            token_ids=tuple(token_id for token_id, _ in tokens),
            gates=tuple(gates for _, gates in tokens),
        )

        assert decode_token_log(encode_token_log(log)) == log

    def test_zeros_are_left_out_and_the_rest_is_single_precision(self) -> None:
        log = TokenLog(0, (7,), ({"a": 0.1, "b": 0.0},))

        assert decode_token_log(encode_token_log(log)).gates == ({"a": float(np.float32(0.1))},)

    def test_four_weights_a_token_take_less_than_fifty_bytes(self) -> None:
        random = np.random.default_rng(0)
        gates = [dict(zip("abcd", random.dirichlet([1] * 4).tolist(), strict=True)) for _ in range(1000)]
        log = TokenLog(500, tuple(random.integers(0, 32_000, 1000).tolist()), tuple(gates))

        assert len(encode_token_log(log)) < 50 * 1000

    @pytest.mark.parametrize("junk", [b"", b"junk", encode_token_log(TokenLog(0, (), ()))[:-1]])
    def test_other_bytes_are_refused(self, junk: bytes) -> None:
        with pytest.raises(ValueError, match="not a token log"):
            decode_token_log(junk)
