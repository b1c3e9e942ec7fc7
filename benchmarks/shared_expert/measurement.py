"""What every system of one seed makes of held-out text, and what their paired differences are over seeds."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.routing_quality.windows import half_way_windows, pure_windows
from benchmarks.shared_expert.trainings import Arms, Bench
from services.shared.config import Settings
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.trainer_worker.evaluation.figures import Totals, interval, resamples, totals
from services.trainer_worker.evaluation.systems import Readings, Weigh, constant, gated, oracle, read, scores_of
from services.trainer_worker.evaluation.windows import Windows
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble

BASE_ALONE: Final = "base"
MULTI_TASK: Final = "multi-task LoRA"
PLAIN: Final = "plain experts, routed"
PLAIN_ORACLE: Final = "plain experts, oracle"
SHARED_ALONE: Final = "shared expert alone"
ON_TOP: Final = "shared expert and experts on top, routed"
ON_TOP_ORACLE: Final = "shared expert and experts on top, oracle"
SYSTEMS: Final = (BASE_ALONE, MULTI_TASK, PLAIN, PLAIN_ORACLE, SHARED_ALONE, ON_TOP, ON_TOP_ORACLE)
DIFFERENCES: Final = ((ON_TOP, MULTI_TASK), (ON_TOP, PLAIN), (PLAIN, MULTI_TASK), (ON_TOP_ORACLE, MULTI_TASK))
PURE: Final = "pure"
SWITCHING: Final = "switching"
AFTER_SWITCH: Final = "first 16 after a switch"
NUM_PER_DOMAIN: Final = 32
NUM_SWITCHING: Final = 80

Sums = Mapping[str, Mapping[str, Totals]]
"""Summed nats and counted tokens per document, by part and system."""


def measure(bench: Bench, arms: Arms) -> Sums:
    """Read pure and switching documents under every system."""
    tokenizer, seed = bench.base.tokenizer, bench.seed
    pure = pure_windows(bench.domains, "held_out", tokenizer, num_per_domain=NUM_PER_DOMAIN, seed=seed)
    switching = half_way_windows(bench.domains, "held_out", tokenizer, num_documents=NUM_SWITCHING, seed=seed)
    of_pure, of_switching = dict(_readings(bench, arms, pure)), dict(_readings(bench, arms, switching))
    return {
        PURE: {name: totals(one, pure, by_domain=True) for name, one in of_pure.items()},
        SWITCHING: {name: totals(one, switching, by_domain=False) for name, one in of_switching.items()},
        AFTER_SWITCH: {
            name: totals(one, switching, by_domain=False, after_switch=True) for name, one in of_switching.items()
        },
    }


def _readings(bench: Bench, arms: Arms, windows: Windows) -> Iterator[tuple[str, Readings]]:
    number = len(bench.domains)
    scorer = bench.scorer(arms)
    weights_BTE = gated(scorer, scores_of(scorer, bench.base, windows))
    plain = {BASE_ALONE: constant([0.0] * number), PLAIN: lambda _: weights_BTE, PLAIN_ORACLE: oracle(number)}
    on_top = {SHARED_ALONE: constant([0.0] * number), ON_TOP: lambda _: weights_BTE, ON_TOP_ORACLE: oracle(number)}
    yield from _read(bench.base, arms.plain, plain, windows)
    yield from _read(bench.base, [(MULTI_TASK, arms.multi_task)], {MULTI_TASK: constant([1.0])}, windows)
    yield from _read(_loaded(arms.merged), arms.on_top, on_top, windows)


def _read(
    base: LoadedBase, experts: Sequence[tuple[str, Path]], systems: Mapping[str, Weigh], windows: Windows
) -> Iterator[tuple[str, Readings]]:
    with ExpertEnsemble.load(base, experts) as ensemble:
        for name, weigh in systems.items():
            yield name, read(ensemble, windows, weigh)


def _loaded(folder: Path) -> LoadedBase:
    return load_base_model(Settings(base_model=str(folder), device="cpu"))


def figures(seeds: Mapping[int, Sums]) -> dict[str, Any]:
    """Losses and differences per part, [mean over seeds, low, high], and every seed's own value.

    Intervals are 95 % of a bootstrap over documents within each seed and domain, averaged over seeds: they tell how
    sure the documents make us of these trainings; `by_seed` tells how much the trainings themselves differ.
    """
    return {
        "losses": {
            part: {
                name: _over_seeds([_loss(sums[part][name], seed) for seed, sums in seeds.items()]) for name in SYSTEMS
            }
            for part in (PURE, SWITCHING, AFTER_SWITCH)
        },
        "differences": {
            part: {
                f"{first} - {second}": _over_seeds(
                    [_loss(sums[part][first], seed) - _loss(sums[part][second], seed) for seed, sums in seeds.items()]
                )
                for first, second in DIFFERENCES
            }
            for part in (PURE, SWITCHING, AFTER_SWITCH)
        },
    }


def _loss(total: Totals, seed: int) -> np.ndarray:
    """Nats per token of the documents as they are and of every resample; equal seeds draw equal resamples."""
    return total.loss(resamples(total.groups_B, seed=seed))


def _over_seeds(values: Sequence[np.ndarray]) -> dict[str, Any]:
    mean = interval(np.mean(values, axis=0))
    return {
        "mean": [round(one, 5) for one in (mean.value, mean.low, mean.high)],
        "by_seed": [round(float(one[0]), 5) for one in values],
    }
