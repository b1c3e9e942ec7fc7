"""The nucleus found among the likeliest tokens is transformers' own."""

import pytest
import torch
from transformers import TopPLogitsWarper

from services.expert_service.nucleus import NucleusWarper

NO_HISTORY = torch.zeros(1, 0, dtype=torch.long)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 3.0, 10.0], ids=["flat", "broad", "usual", "sharp"])
@pytest.mark.parametrize("vocab_size", [7, 300, 20_000])
def test_keeps_what_transformers_keeps(vocab_size: int, sharpness: float, top_p: float) -> None:
    scores = sharpness * torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(vocab_size))

    ours = NucleusWarper(top_p)(NO_HISTORY, scores)
    theirs = TopPLogitsWarper(top_p)(NO_HISTORY, scores)  # type: ignore[arg-type]

    # Sums from above and from below round differently: one token at the edge may be in one of them only.
    different = (ours != theirs).nonzero()
    assert len(different) <= 1
    assert torch.equal(ours[ours.isfinite()], scores[ours.isfinite()])


def test_of_equals_at_the_edge_no_more_are_kept_than_needed() -> None:
    kept = NucleusWarper(0.45)(NO_HISTORY, torch.zeros(1, 10)).isfinite()

    assert int(kept.sum()) == 5


def test_what_other_filters_took_out_stays_out() -> None:
    scores = torch.full((1, 1000), -torch.inf)
    scores[0, [3, 7, 11]] = torch.tensor([2.0, 1.0, -1.0])

    assert NucleusWarper(0.999)(NO_HISTORY, scores).isfinite().nonzero()[:, 1].tolist() == [3, 7, 11]
    assert NucleusWarper(0.5)(NO_HISTORY, scores).isfinite().nonzero()[:, 1].tolist() == [3]
