"""A window of a trace is what reading all of it would have given there."""

from pathlib import Path

import pytest

from services.traces.window import choices_between
from tests.unit.traces.test_table import written


class TestChoicesBetween:
    def test_gives_the_tokens_of_one_sequence(self, tmp_path: Path) -> None:
        tokens = choices_between(written(tmp_path / "trace"), 1, 2, start=1, count=5)

        assert [(token.position, token.phase, token.token_id) for token in tokens] == [(1, 0, 11), (2, 1, 12)]
        assert [(token.experts, token.weights) for token in tokens] == [((2,), (1.0,)), ((1, 0), (0.5, 0.5))]

    def test_weights_that_nobody_told_are_none(self, tmp_path: Path) -> None:
        (token,) = choices_between(written(tmp_path / "trace", with_weights=False), 1, 0, start=0, count=1)

        assert token.weights is None

    def test_row_groups_do_not_show(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("services.traces.table._ROWS_PER_GROUP", 2)
        tokens = choices_between(written(tmp_path / "trace"), 1, 1, start=0, count=10)

        assert [token.experts for token in tokens] == [(1, 4), (2,), (1, 0)]

    def test_beyond_the_end_there_is_nothing(self, tmp_path: Path) -> None:
        assert choices_between(written(tmp_path / "trace"), 1, 0, start=3, count=10) == []

    def test_a_layer_that_was_not_traced_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError):
            choices_between(written(tmp_path / "trace"), 2, 0, start=0, count=1)
