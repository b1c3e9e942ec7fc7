"""What happens to everybody when one expert joins by its adapter and its evidence alone."""

import numpy as np

from benchmarks.routing_quality.workbench import ROUTED, Workbench
from services.trainer_worker.evaluation.figures import domain_losses
from services.trainer_worker.evaluation.systems import Readings, read, routed, with_silent_column
from services.trainer_worker.evaluation.windows import Windows
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble


def measure_newcomers(bench: Workbench, windows: Windows, readings: dict[str, Readings]) -> dict[str, dict[str, float]]:
    """For each domain: the share of its expert's gain that the routed mixture keeps, and what the others lose by it."""
    losses = {name: np.array(domain_losses(reading, windows)) for name, reading in readings.items()}
    figures: dict[str, dict[str, float]] = {}
    with ExpertEnsemble.load(bench.base, bench.adapters) as ensemble:
        for index, name in enumerate(bench.names):
            without = with_silent_column(routed(bench.scorer("bigram", without=name), bench.base), index)
            before = np.array(domain_losses(read(ensemble, windows, without), windows))
            change = np.delete(losses[ROUTED] - before, index)
            gain = losses["base"][index] - losses["oracle"][index]
            figures[name] = {
                "kept_by_newcomer": float((losses["base"][index] - losses[ROUTED][index]) / gain),
                "old_domains": float(change.mean()),
                "worst_old_domain": float(change.max()),
            }
    return figures
