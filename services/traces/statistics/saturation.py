"""How much of the final routing is there already: Muennighoff et al. 2024 (OLMoE, arXiv:2409.02060), equation 5."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import LayerChoices
from services.traces.statistics.errors import NoSuchFigure
from services.traces.statistics.estimate import Null, NullMethod, estimate
from services.traces.statistics.expert_sets import expert_sets, num_common
from services.traces.statistics.resamples import Resamples, share
from services.traces.statistics.results import AnalysisOptions, LayerSaturation
from services.traces.statistics.sequence_counts import sequence_counts

_MAX_GROUPS = 1024

Floats = NDArray[np.float64]


def saturation(
    earlier: LayerChoices, final: LayerChoices, *, num_domains: int, options: AnalysisOptions
) -> LayerSaturation:
    """Of one layer of the same tokens in both: `alike` finds them. Null: two that are popular have each other's experts
    by chance."""
    if earlier.num_experts != final.num_experts:
        raise NoSuchFigure(f"{earlier.num_experts} experts in one and {final.num_experts} in the other")
    if not earlier.num_tokens:
        raise NoSuchFigure("they have no token in common")
    num_experts, top_k = final.num_experts, final.experts.shape[1]
    common_T = num_common(expert_sets(earlier.experts, num_experts), expert_sets(final.experts, num_experts))
    counts, final_counts = sequence_counts(earlier), sequence_counts(final)
    common_N1 = np.bincount(earlier.sequences, common_T, earlier.num_sequences).astype(np.float64)[:, None]
    whole_N1 = final_counts.assignments_NE.sum(axis=1, keepdims=True)
    shares_E, final_shares_E = (
        share(each.assignments_NE.sum(axis=0), each.tokens_N.sum()) for each in (counts, final_counts)
    )
    resamples = Resamples(
        final.domains, num_domains, num_resamples=options.num_resamples, max_groups=_MAX_GROUPS, seed=options.seed
    )
    return LayerSaturation(
        num_sequences=earlier.num_sequences,
        num_tokens=earlier.num_tokens,
        layer=final.layer,
        saturation=estimate(
            share(common_N1.sum(), whole_N1.sum()),
            resamples.bounds(share(resamples.totals(common_N1), resamples.totals(whole_N1))[:, 0]),
            Null(NullMethod.POPULARITY, share(shares_E @ final_shares_E, final_shares_E.sum())),
        ),
        random=top_k / num_experts,
    )


def alike(
    earlier: LayerChoices, final: LayerChoices, pairs: Sequence[tuple[int, int]]
) -> tuple[LayerChoices, LayerChoices]:
    """Sequences of both, pair by pair, as far as their tokens are the same: to the first id that differs, where both
    tell ids, else whole sequences of equally many tokens. Those without a token are not in it."""
    first_tokens, second_tokens, lengths = [], [], []
    for first, second in pairs:
        first_T = np.arange(*earlier.starts[first : first + 2])
        second_T = np.arange(*final.starts[second : second + 2])
        length = _common_length(earlier, final, first_T, second_T)
        lengths.append(length)
        first_tokens.append(first_T[:length])
        second_tokens.append(second_T[:length])
    kept = [place for place, length in enumerate(lengths) if length]
    starts = np.concatenate(([0], np.cumsum([lengths[place] for place in kept], dtype=np.int64)))
    return (
        earlier.of_tokens(_joined(first_tokens), starts, np.array([pairs[place][0] for place in kept], dtype=np.int64)),
        final.of_tokens(_joined(second_tokens), starts, np.array([pairs[place][1] for place in kept], dtype=np.int64)),
    )


def _common_length(
    earlier: LayerChoices, final: LayerChoices, first_T: NDArray[np.int64], second_T: NDArray[np.int64]
) -> int:
    if earlier.token_ids is None or final.token_ids is None:
        return len(first_T) if len(first_T) == len(second_T) else 0
    shorter = min(len(first_T), len(second_T))
    differ = earlier.token_ids[first_T[:shorter]] != final.token_ids[second_T[:shorter]]
    return int(differ.argmax()) if differ.any() else shorter


def _joined(tokens: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, dtype=np.int64), *tokens])
