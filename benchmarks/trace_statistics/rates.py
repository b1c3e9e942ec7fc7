"""How often tests find what is not there and what is, and how often intervals hold what was planted: many seeds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.trace_statistics.planted_choices import planted
from services.traces.statistics.divergence import divergences
from services.traces.statistics.estimate import Estimate, Matrix, Series
from services.traces.statistics.information import entropy_bits, mutual_information_bits
from services.traces.statistics.layer_figures import layer_figures
from services.traces.statistics.repetition import random_repetition
from services.traces.statistics.results import AnalysisOptions, Figure, LayerFigures

NUM_DOMAINS = 4
NUM_EXPERTS = 8
NUM_TOKENS = 120
LEVEL = 0.05
OPTIONS = AnalysisOptions(num_permutations=199, num_resamples=299, num_matrix_resamples=100, max_shuffles=30)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What is planted, and what is true of it by `figure.field`: one number, or one for each cell."""

    name: str
    prompts: int
    """In each of four domains."""
    planted: Mapping[str, Any]
    truths: Mapping[str, float | Floats] = field(default_factory=dict)


def settings() -> list[Setting]:
    """Nothing, with many prompts and few; and two effects, each strong enough to ask for its interval and faint."""
    return [
        *(Setting(f"nothing, {n} prompts a domain", n, {"prompt_spread": 0.05, "top_k": 2}) for n in (3, 5, 10)),
        *(
            Setting(f"stickiness 0.3, {n} prompts a domain", n, {"stickiness": 0.3, "top_k": 2}, _sticky_truths())
            for n in (3, 5, 10)
        ),
        *(
            Setting(f"preference 0.2, {n} prompts a domain", n, {"preference": 0.2, "prompt_spread": 0.02}, _domains())
            for n in (5, 10, 20)
        ),
        Setting("stickiness 0.03, 10 prompts a domain", 10, {"stickiness": 0.03, "top_k": 2}),
        Setting("preference 0.05, 10 prompts a domain", 10, {"preference": 0.05, "prompt_spread": 0.02}),
    ]


def measured(setting: Setting, seeds: range) -> dict[str, Any]:
    """Shares of seeds, by `figure.field`."""
    found: dict[str, list[float]] = {}
    held: dict[str, list[float]] = {}
    for seed in seeds:
        domains = np.repeat(np.arange(NUM_DOMAINS), setting.prompts)
        choices = planted(
            num_experts=NUM_EXPERTS, domains=domains, num_tokens=NUM_TOKENS, seed=seed, **setting.planted
        )  # fmt: skip
        figures = layer_figures(choices, num_domains=NUM_DOMAINS, options=OPTIONS.model_copy(update={"seed": seed}))
        for name, estimate in _estimates(figures):
            discovered = _discovered(estimate)
            if discovered is not None:
                found.setdefault(name, []).append(discovered)
            truth = setting.truths.get(name)
            if truth is not None and estimate.low is not None:
                held.setdefault(name, []).append(_held(estimate, truth))
        assert figures.independence is not None
        found.setdefault("chi-square over tokens", []).append((figures.independence.token_p_value or 0) < LEVEL)
    return {
        "discovered": {name: _rate(values) for name, values in found.items()},
        "covered": {name: _rate(values) for name, values in held.items()},
    }


def _estimates(figures: LayerFigures) -> Iterator[tuple[str, Estimate | Series | Matrix]]:
    for name, figure in figures:
        if isinstance(figure, Figure):
            for part, value in figure:
                if isinstance(value, Estimate | Series | Matrix):
                    yield f"{name}.{part}", value


def _discovered(estimate: Estimate | Series | Matrix) -> bool | None:
    """Of one number by p, of several whether any is by q; None where nothing is tested."""
    values = estimate.p_value if isinstance(estimate, Estimate) else estimate.q_value
    if values is None:
        return None
    return bool(np.nanmin(np.array(values, dtype=np.float64)) < LEVEL)


def _held(estimate: Estimate | Series | Matrix, truth: float | Floats) -> float:
    """Whether the interval has it; of several, the share that do."""
    low, high = (np.array(end, dtype=np.float64) for end in (estimate.low, estimate.high))
    expected = np.asarray(truth)
    cells = tuple(slice(size) for size in expected.shape)
    # Values are kept to six digits.
    return float(np.mean((low[cells] <= expected + 1e-5) & (expected - 1e-5 <= high[cells])))


def _rate(values: list[float]) -> dict[str, float]:
    """With its 95 % interval (Wilson), of so many seeds."""
    interval = stats.binomtest(round(sum(values)), len(values)).proportion_ci(method="wilson")
    return {"rate": float(np.mean(values)), "low": interval.low, "high": interval.high, "seeds": len(values)}


def _sticky_truths() -> dict[str, float | Floats]:
    stays, chance = 0.3, 1 / NUM_EXPERTS
    repeated = stays + (1 - stays) * chance
    lags = stays ** np.arange(1, 5)
    return {
        "stickiness.repetition": repeated,
        "stickiness.excess": repeated - chance,
        "repetition.first_by_domain": np.full(NUM_DOMAINS, repeated),
        "repetition.first_or_second": stays + (1 - stays) * random_repetition(NUM_EXPERTS, 2),
        "overlap.share": stays + (1 - stays) * 2 / NUM_EXPERTS,
        "autocorrelation.repetition": lags + (1 - lags) * chance,
        "run_lengths.mean": NUM_TOKENS / (NUM_TOKENS - (NUM_TOKENS - 1) * repeated),
        "transitions.probability": stays * np.eye(NUM_EXPERTS) + (1 - stays) * chance,
    }


def _domains() -> dict[str, float | Floats]:
    shares_DE = np.full((NUM_DOMAINS, NUM_EXPERTS), 0.8 / NUM_EXPERTS) + 0.2 * np.eye(NUM_DOMAINS, NUM_EXPERTS)
    anywhere_E = shares_DE.mean(axis=0)
    phi_square = np.sum((shares_DE / NUM_DOMAINS) ** 2 / (anywhere_E / NUM_DOMAINS)) - 1
    apart = divergences(shares_DE)[np.triu_indices(NUM_DOMAINS, 1)]
    # Of a prompt's own shares, by Dirichlet's law around the domain's.
    repeated_D = np.sum(shares_DE * (1 - shares_DE) / (1 / 0.02 + 1) + shares_DE**2, axis=1)
    return {
        "frequency.share": shares_DE,
        "independence.cramers_v": float(np.sqrt(phi_square / (NUM_DOMAINS - 1))),
        "divergence.distance": np.sqrt(divergences(shares_DE)),
        "divergence.mean_distance": float(np.sqrt(apart.mean())),
        "mutual_information.bits": float(mutual_information_bits(shares_DE)),
        "entropy.bits": float(entropy_bits(anywhere_E)),
        "specialisation.lift": shares_DE / anywhere_E,
        "stickiness.repetition": float(repeated_D.mean()),
        "load.share": anywhere_E,
    }
