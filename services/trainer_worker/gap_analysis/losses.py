"""What was measured on prompts: mean nats per token, with an interval over requests."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from scipy.stats import bootstrap

from services.trainer_worker.gap_analysis.window import Prompt

_NUM_RESAMPLES: Final = 2000
_LEAST_REQUESTS: Final = 5
"""Of a known domain, for a mean that says something."""


def mean_nats(values: Sequence[float | None], *, seed: int) -> dict[str, Any] | None:
    """Mean, the ends of its 95 % percentile bootstrap interval and how many were measured; None below two."""
    measured = np.asarray([value for value in values if value is not None and np.isfinite(value)])
    if len(measured) < 2:
        return None
    interval = bootstrap(
        (measured,),
        np.mean,
        n_resamples=_NUM_RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {
        "mean": float(measured.mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "num_requests": len(measured),
    }


def measured_losses(prompts: Sequence[Prompt], *, seed: int) -> dict[str, Any]:
    """Of these prompts under the mixture and under the base model alone."""
    return {
        "mixture": mean_nats([prompt.nats for prompt in prompts], seed=seed),
        "base": mean_nats([prompt.base_nats for prompt in prompts], seed=seed),
    }


def known_losses(ordinary: Sequence[Prompt], *, seed: int) -> dict[str, Any]:
    """The same by domain, of requests that were not flagged."""
    by_domain: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in ordinary:
        if prompt.domain is not None:
            by_domain[prompt.domain].append(prompt)
    return {
        domain: measured_losses(prompts, seed=seed)
        for domain, prompts in sorted(by_domain.items())
        if len(prompts) >= _LEAST_REQUESTS
    }
