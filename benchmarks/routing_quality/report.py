"""The comparison as JSON and as Markdown tables."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks.routing_quality.measurement import Measurement
from benchmarks.routing_quality.workbench import ROUTED, ROUTERS
from services.trainer_worker.evaluation.figures import (
    Interval,
    Totals,
    compare,
    difference,
    domain_losses,
    experts_per_token,
    token_accuracy,
    totals,
)
from services.trainer_worker.training.graph_report import GraphReport

Figures = dict[str, Any]


def figures_of(measurement: Measurement) -> Figures:
    """Everything that the tables show for one seed."""
    pure, switching = _totals(measurement)
    after = {
        name: totals(readings, measurement.switching, by_domain=False, after_switch=True)
        for name, readings in measurement.switching_readings.items()
    }
    pure_figures, switching_figures = compare(pure), compare(switching)
    systems = {
        name: {
            "domains": dict(zip(measurement.domains, domain_losses(readings, measurement.pure), strict=True)),
            "pure": _as_lists(pure_figures[name]),
            "switching": _as_lists(switching_figures[name]),
            "after_switch": float(after[name].nats_B.sum() / after[name].tokens_B.sum()),
            "experts_per_token": experts_per_token(readings, measurement.pure),
            "token_accuracy": token_accuracy(readings, measurement.pure) if name in ROUTERS else None,
            "token_accuracy_switching": (
                token_accuracy(measurement.switching_readings[name], measurement.switching) if name in ROUTERS else None
            ),
        }
        for name, readings in measurement.pure_readings.items()
    }
    return {
        "seed": measurement.seed,
        "num_windows": [len(measurement.pure), len(measurement.switching)],
        "systems": systems,
        "routed_minus": _differences(pure, switching),
        "newcomers": measurement.newcomers,
        "router_training": {**asdict(measurement.router_training), "router_dir": None},
        "graph": measurement.graph.as_json() if measurement.graph else None,
    }


def machine() -> dict[str, Any]:
    """Where the figures were measured."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def markdown(seeds: Sequence[Figures], graph: GraphReport | None) -> str:
    """The tables: per-domain matrix, comparison, differences, newcomers, several seeds, graph."""
    first = seeds[0]
    parts = [
        f"### Loss by domain, nats per token (perplexity), seed {first['seed']}",
        _matrix(first["systems"]),
        f"### Comparison, seed {first['seed']}",
        _comparison(first["systems"]),
        "### Paired differences of the default router, nats per token, 95 % intervals (negative: the router is better)",
        _difference_table(first["routed_minus"]),
        "### A newcomer joins: each domain left out, then added by its adapter and its evidence alone",
        _newcomer_table(first["newcomers"]),
    ]
    if len(seeds) > 1:
        parts += [f"### Seeds {', '.join(str(figures['seed']) for figures in seeds)}", _seed_table(seeds)]
    if graph is not None:
        parts += ["### Cooperation graph on the default router, with its controls", _graph_table(graph)]
    return "\n\n".join(parts) + "\n"


def _totals(measurement: Measurement) -> tuple[dict[str, Totals], dict[str, Totals]]:
    pure = {
        name: totals(readings, measurement.pure, by_domain=True) for name, readings in measurement.pure_readings.items()
    }
    switching = {
        name: totals(readings, measurement.switching, by_domain=False)
        for name, readings in measurement.switching_readings.items()
    }
    return pure, switching


def _differences(pure: Mapping[str, Totals], switching: Mapping[str, Totals]) -> Figures:
    others = [name for name in pure if name != ROUTED and not name.startswith("expert ")]
    return {
        name: {
            "pure": _as_list(difference(pure[ROUTED], pure[name])),
            "switching": _as_list(difference(switching[ROUTED], switching[name])),
        }
        for name in others
    }


def _matrix(systems: Figures) -> str:
    domains = list(next(iter(systems.values()))["domains"])
    rows = [
        [name, *(f"{row['domains'][domain]:.3f} ({np.exp(row['domains'][domain]):.2f})" for domain in domains)]
        for name, row in systems.items()
    ]
    return _table(["system", *domains], rows)


def _comparison(systems: Figures) -> str:
    header = ["system", "loss", "kept", "loss, switching", "kept, switching", "first 16 after a switch"]
    rows = []
    for name, row in systems.items():
        experts = "" if row["token_accuracy"] is None else f"{row['experts_per_token']:.2f}"
        accuracy = (
            ""
            if row["token_accuracy"] is None
            else f"{row['token_accuracy']:.3f} / {row['token_accuracy_switching']:.3f}"
        )
        rows.append(
            [
                name,
                f"{row['pure']['loss'][0]:.3f}",
                _spread(row["pure"]["kept"]),
                f"{row['switching']['loss'][0]:.3f}",
                _spread(row["switching"]["kept"]),
                f"{row['after_switch']:.3f}",
                experts,
                accuracy,
            ]
        )
    return _table([*header, "experts per token", "token accuracy, pure / switching"], rows)


def _difference_table(differences: Figures) -> str:
    rows = [
        [f"router - {name}", _spread(row["pure"], signed=True), _spread(row["switching"], signed=True)]
        for name, row in differences.items()
    ]
    return _table(["difference", "pure", "switching"], rows)


def _newcomer_table(newcomers: Figures) -> str:
    rows = [
        [name, f"{row['kept_by_newcomer']:.4f}", f"{row['old_domains']:+.4f}", f"{row['worst_old_domain']:+.4f}"]
        for name, row in newcomers.items()
    ]
    header = ["newcomer", "gain of its expert kept", "change of old domains, nats", "worst old domain, nats"]
    return _table(header, rows)


def _seed_table(seeds: Sequence[Figures]) -> str:
    rows = []
    for name in seeds[0]["systems"]:
        if name.startswith("expert "):
            continue
        row = [name]
        for part in ("pure", "switching"):
            for figure in ("loss", "kept"):
                values = [figures["systems"][name][part][figure][0] for figures in seeds]
                row.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
        rows.append(row)
    return _table(["system, mean ± sd", "loss", "kept", "loss, switching", "kept, switching"], rows)


def _graph_table(report: GraphReport) -> str:
    rows = [
        [
            variant.name,
            str(variant.seed),
            f"{variant.loss:.4f}",
            f"{variant.gain:+.4f} [{variant.gain_low:+.4f}, {variant.gain_high:+.4f}]",
            f"{variant.sparsity:.2f}",
            f"{variant.largest_edge:.3f}",
        ]
        for variant in report.variants
    ]
    header = ["variant", "seed", "loss", "gain over no graph", "exact zeros", "largest edge"]
    over = "; ".join(f"{name} {_spread(gain, signed=True)}" for name, gain in report.gains_over.items())
    over += f"; on whole documents over no graph {_spread(report.gain_on_whole, signed=True)}"
    verdict = f"Learned graphs over {over}. Beats its controls: {'yes' if report.beats_controls else 'no'}."
    return f"{_table(header, rows)}\n\n{verdict}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: Sequence[float], *, signed: bool = False) -> str:
    value, low, high = values
    sign = "+" if signed else ""
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _as_lists(figures: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: _as_list(entry) for name, entry in figures.items()}


def _as_list(entry: Interval) -> list[float]:
    return [round(value, 5) for value in (entry.value, entry.low, entry.high)]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
