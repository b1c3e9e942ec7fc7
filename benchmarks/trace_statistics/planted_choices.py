"""Choices with a structure that is known, because it was put there."""

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import LayerChoices, Phase


def planted(  # noqa: PLR0913
    *,
    num_experts: int = 8,
    top_k: int = 1,
    domains: NDArray[np.int64],
    num_tokens: int,
    seed: int,
    stickiness: float = 0.0,
    preference: float = 0.0,
    popularity: NDArray[np.float64] | None = None,
    prompt_spread: float = 0.0,
    phase: Phase = Phase.GENERATED,
) -> LayerChoices:
    """N sequences of `num_tokens` tokens. A token has the experts of the one before with probability `stickiness`, else
    new ones by the shares of its sequence: `popularity`, of which domain d has `preference` more on expert d; around
    them each prompt's own shares spread by a Dirichlet law, the more the larger `prompt_spread` is."""
    generator = np.random.default_rng(seed)
    shares_E = np.full(num_experts, 1 / num_experts) if popularity is None else popularity
    shares_NE = np.tile((1 - preference) * shares_E, (len(domains), 1))
    shares_NE[np.arange(len(domains)), domains] += preference
    if prompt_spread:
        shares_NE = np.stack([generator.dirichlet(each / prompt_spread) for each in shares_NE])
    sequences_T = np.repeat(np.arange(len(domains)), num_tokens)
    # The K largest of these are drawn by their shares without replacement (Efraimidis and Spirakis 2006).
    keys_TE = np.log(generator.random((len(sequences_T), num_experts))) / np.maximum(shares_NE, 1e-12)[sequences_T]
    drawn_TK = np.argsort(-keys_TE, axis=1)[:, :top_k]
    stays_T = generator.random(len(sequences_T)) < stickiness
    stays_T[::num_tokens] = False
    source_T = np.maximum.accumulate(np.where(stays_T, 0, np.arange(len(sequences_T))))
    return LayerChoices(
        layer=0,
        num_experts=num_experts,
        experts=drawn_TK[source_T].astype(np.int32),
        weights=None,
        token_ids=generator.integers(0, 50, len(sequences_T)),
        phases=np.full(len(sequences_T), phase, dtype=np.uint8),
        starts=np.arange(len(domains) + 1) * num_tokens,
        domains=domains,
    )
