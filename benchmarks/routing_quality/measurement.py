"""One seed of the comparison: train, route, read held-out text under every system."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.routing_quality.experts import MULTI_TASK, RANK
from benchmarks.routing_quality.newcomers import measure_newcomers
from benchmarks.routing_quality.windows import half_way_windows, pure_windows
from benchmarks.routing_quality.workbench import ROUTERS, Workbench
from services.trainer_worker.evaluation.systems import Readings, constant, oracle, read, routed
from services.trainer_worker.evaluation.windows import Windows
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble
from services.trainer_worker.training.graph_report import GraphReport
from services.trainer_worker.training.router import RouterTraining


@dataclass(frozen=True)
class Measurement:
    """Everything read in one seed; systems by name."""

    seed: int
    domains: tuple[str, ...]
    pure: Windows
    switching: Windows
    pure_readings: dict[str, Readings]
    switching_readings: dict[str, Readings]
    newcomers: dict[str, dict[str, float]]
    router_training: RouterTraining
    graph: GraphReport | None


def measure(bench: Workbench, say: Callable[[str], None]) -> Measurement:
    """Train what is not trained yet and read held-out text under every system."""
    bench.train_experts(say)
    say(f"seed {bench.seed}: multi-task adapter")
    multi_task = bench.train_multi_task()
    bench.write_bayes_routers()
    say(f"seed {bench.seed}: learned router")
    router_training = bench.train_router()
    say(f"seed {bench.seed}: reading held-out text")
    tokenizer, scale = bench.base.tokenizer, bench.scale
    pure = pure_windows(bench.domains, "held_out", tokenizer, num_per_domain=scale.num_per_domain, seed=bench.seed)
    switching = half_way_windows(
        bench.domains, "held_out", tokenizer, num_documents=scale.num_switching, seed=bench.seed
    )
    pure_readings = dict(read_systems(bench, pure, multi_task))
    switching_readings = dict(read_systems(bench, switching, multi_task))
    newcomers = measure_newcomers(bench, pure, pure_readings)
    graph = None
    if scale.graph is not None:
        say(f"seed {bench.seed}: cooperation graph and its controls")
        graph = bench.train_graph(scale.graph)
    return Measurement(
        seed=bench.seed,
        domains=tuple(bench.names),
        pure=pure,
        switching=switching,
        pure_readings=pure_readings,
        switching_readings=switching_readings,
        newcomers=newcomers,
        router_training=router_training,
        graph=graph,
    )


def read_systems(bench: Workbench, windows: Windows, multi_task: Path) -> Iterator[tuple[str, Readings]]:
    """Every system's readings of these windows."""
    number = len(bench.domains)
    with ExpertEnsemble.load(bench.base, bench.adapters) as ensemble:
        yield "base", read(ensemble, windows, constant([0.0] * number))
        for index, name in enumerate(bench.names):
            one_hot = [1.0 if column == index else 0.0 for column in range(number)]
            yield f"expert {name}", read(ensemble, windows, constant(one_hot))
        yield "uniform mixture", read(ensemble, windows, constant([1.0 / number] * number))
        for name, router in ROUTERS.items():
            yield name, read(ensemble, windows, routed(bench.scorer(router), bench.base))
        yield "oracle", read(ensemble, windows, oracle(number))
    with ExpertEnsemble.load(bench.base, [(MULTI_TASK, multi_task)]) as ensemble:
        yield f"{MULTI_TASK} LoRA, rank {number * RANK}", read(ensemble, windows, constant([1.0]))
