"""How evenly experts are used."""

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import NOBODY, LayerChoices
from services.traces.statistics.estimate import Null, NullMethod, estimate, number, numbers, series
from services.traces.statistics.resamples import Resamples, share
from services.traces.statistics.results import Load
from services.traces.statistics.sequence_counts import SequenceCounts

_NUM_DRAWS = 199

Floats = NDArray[np.float64]


def load(choices: LayerChoices, counts: SequenceCounts, resamples: Resamples, *, seed: int) -> Load:
    """Of assignments. The nulls are of as many assignments that are each made for themselves: what is left of the
    imbalance then is chance."""
    chosen_E = counts.assignments_NE.sum(axis=0)
    num_experts = len(chosen_E)
    drawn_RE = resamples.totals(counts.assignments_NE)
    generator = np.random.default_rng((seed, 4))
    shares_E = np.full(num_experts, 1 / num_experts)
    even_SE = generator.multinomial(int(chosen_E.sum()), shares_E, size=_NUM_DRAWS).astype(np.float64)
    deviation, deviation_R, deviation_S = (relative_deviation(each) for each in (chosen_E, drawn_RE, even_SE))
    most, most_R, most_S = (max_over_mean(each) for each in (chosen_E, drawn_RE, even_SE))
    return Load(
        num_sequences=counts.num_sequences,
        num_tokens=int(counts.tokens_N.sum()),
        share=series(
            share(chosen_E, chosen_E.sum()),
            resamples.bounds(share(drawn_RE, drawn_RE.sum(axis=1, keepdims=True))),
            Null(NullMethod.UNIFORM, 1 / num_experts),
        ),
        weight_share=numbers(_weight_share(choices)) if choices.weights is not None else None,
        imbalance=estimate(
            deviation,
            resamples.corrected_bounds(
                deviation**2, deviation_R**2, lambda values: np.sqrt(np.clip(values, 0, num_experts - 1))
            ),
            _null(deviation_S),
        ),
        max_over_mean=estimate(
            most,
            resamples.corrected_bounds(most, most_R, lambda values: np.clip(values, 1, num_experts)),
            _null(most_S),
        ),
        max_violation=estimate(
            most - 1,
            resamples.corrected_bounds(most - 1, most_R - 1, lambda values: np.clip(values, 0, num_experts - 1)),
            _null(most_S - 1),
        ),
        sequence_max_violation=number(np.mean(max_over_mean(counts.assignments_NE)) - 1),
        unused=tuple(np.flatnonzero(chosen_E == 0).tolist()),
    )


def relative_deviation(counts: Floats) -> Floats:
    """Standard deviation over mean, of [..., E]."""
    return share(counts.std(axis=-1), counts.mean(axis=-1))


def max_over_mean(counts: Floats) -> Floats:
    """Of [..., E]."""
    return share(counts.max(axis=-1), counts.mean(axis=-1))


def _weight_share(choices: LayerChoices) -> Floats:
    assert choices.weights is not None
    chosen = choices.experts != NOBODY
    weights_E = np.bincount(choices.experts[chosen], choices.weights[chosen], minlength=choices.num_experts)
    return share(weights_E, weights_E.sum())


def _null(drawn_S: Floats) -> Null:
    low, high = np.percentile(drawn_S, [2.5, 97.5])
    return Null(NullMethod.UNIFORM, drawn_S.mean(), low, high)
