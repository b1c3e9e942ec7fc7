"""Every kind of job has code that runs it."""

import pytest

from services.shared.vocabulary import JobKind
from services.trainer_worker.kinds import handler_of


@pytest.mark.parametrize("kind", JobKind)
def test_every_kind_has_a_handler(kind: JobKind) -> None:
    assert callable(handler_of(kind))
