"""What happens to everybody when one expert joins by its adapter and its evidence alone."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.routing_quality.figures import domain_losses
from benchmarks.routing_quality.systems import Readings, Weigh, read, routed
from benchmarks.routing_quality.windows import Windows
from benchmarks.routing_quality.workbench import ROUTED, Workbench
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble


def measure_newcomers(bench: Workbench, windows: Windows, readings: dict[str, Readings]) -> dict[str, dict[str, float]]:
    """For each domain: the share of its expert's gain that the routed mixture keeps, and what the others lose by it."""
    losses = {name: np.array(domain_losses(reading, windows)) for name, reading in readings.items()}
    figures: dict[str, dict[str, float]] = {}
    with ExpertEnsemble.load(bench.base, bench.adapters) as ensemble:
        for index, name in enumerate(bench.names):
            before = np.array(domain_losses(read(ensemble, windows, _without(bench, name)), windows))
            change = np.delete(losses[ROUTED] - before, index)
            gain = losses["base"][index] - losses["oracle"][index]
            figures[name] = {
                "kept_by_newcomer": float((losses["base"][index] - losses[ROUTED][index]) / gain),
                "old_domains": float(change.mean()),
                "worst_old_domain": float(change.max()),
            }
    return figures


def _without(bench: Workbench, name: str) -> Weigh:
    """The release before the newcomer: its column of the ensemble stays at zero."""
    smaller = routed(bench.scorer("bigram", without=name), bench.base)
    position = bench.names.index(name)

    def weigh(windows: Windows) -> Tensor:
        weights_BTE = smaller(windows)
        zeros_BT1 = torch.zeros(*weights_BTE.shape[:2], 1)
        return torch.cat([weights_BTE[..., :position], zeros_BT1, weights_BTE[..., position:]], dim=-1)

    return weigh
