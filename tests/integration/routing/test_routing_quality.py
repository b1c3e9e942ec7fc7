"""Real text on the real pretrained model, in small: the routed mixture keeps what its experts gained."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.routing_quality.windows import pure_windows
from benchmarks.routing_quality.workbench import Scale, Workbench
from services.trainer_worker.evaluation.figures import totals
from services.trainer_worker.evaluation.systems import constant, oracle, read, routed
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DOMAINS = ("gsm8k", "shakespeare")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, shared_material: Path) -> Workbench:
    """Two experts after forty steps each, with their evidence and the default router."""
    torch.set_num_threads(1)
    bench = Workbench(
        shared_material / "models/stories260K-hf",
        shared_material / "data/text",
        tmp_path_factory.mktemp("bench"),
        seed=0,
        scale=Scale(expert_steps=40),
    )
    bench.domains = [domain for domain in bench.domains if domain.name in DOMAINS]
    bench.train_experts(lambda message: None)
    bench.write_bayes_routers()
    return bench


@pytest.mark.timeout(600)
def test_the_routed_mixture_keeps_what_an_oracle_would_gain(bench: Workbench) -> None:
    windows = pure_windows(bench.domains, "held_out", bench.base.tokenizer, num_per_domain=12, seed=0)
    systems = {
        "base": constant([0.0, 0.0]),
        "routed": routed(bench.scorer("bigram"), bench.base),
        "oracle": oracle(2),
    }

    with ExpertEnsemble.load(bench.base, bench.adapters) as ensemble:
        readings = {name: read(ensemble, windows, weigh) for name, weigh in systems.items()}

    everything = np.arange(len(windows))[None]
    base, mixture, best = (
        totals(readings[name], windows, by_domain=True).loss(everything)[0] for name in ("base", "routed", "oracle")
    )
    assert base - best > 1.0
    assert (base - mixture) / (base - best) > 0.95
