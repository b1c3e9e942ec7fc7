"""Answers that loop are found, and ordinary ones are not."""

import numpy as np
import pytest

from services.traces.description import Severity
from services.trainer_worker.tracing.repetition import is_repetitive, repetition_finding

TEXT = np.random.default_rng(0).integers(0, 500, size=100)


class TestRepetition:
    @pytest.mark.parametrize("period", [1, 2, 7])
    def test_is_found_whatever_its_period(self, period: int) -> None:
        loop = np.tile(TEXT[:period], 100 // period)

        assert is_repetitive(loop)
        assert is_repetitive(np.concatenate([TEXT[:30], loop]))

    def test_is_not_seen_in_ordinary_text(self) -> None:
        assert not is_repetitive(TEXT)
        assert not is_repetitive(np.concatenate([TEXT[:70], np.full(30, 7)]))

    def test_of_short_answers_is_not_told(self) -> None:
        assert not is_repetitive(np.full(10, 7))

    def test_is_told_with_the_prompts_that_it_happened_to(self) -> None:
        finding = repetition_finding(["code/a", "code/b", "math/a"], [TEXT, np.full(50, 7), TEXT])

        assert finding is not None
        assert (finding.code, finding.severity, finding.count) == ("repetitive_generation", Severity.WARNING, 1)
        assert "1 of 3 answers repeat themselves: code/b." in finding.message

    def test_that_did_not_happen_is_not_told(self) -> None:
        assert repetition_finding(["code/a"], [TEXT]) is None
