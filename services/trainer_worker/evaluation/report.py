"""An evaluation for people: Markdown tables around the pictures of `pictures.py`."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from services.trainer_worker.evaluation.pictures import AROUND_SWITCH, KEPT, RELIABILITY, SWEEP, UTILISATION
from services.trainer_worker.evaluation.release_figures import ROUTED, Figures

_NAMES = {
    "kept": "gain of the oracle's kept, whole documents",
    "kept_later": "the same after the first 16 tokens",
    "kept_switching": "gain of the oracle's kept, switching documents",
    "loss": "loss, whole documents",
    "loss_switching": "loss, switching documents",
    "after_switch": "loss, first 16 tokens after a switch",
    "after_switch_oracle": "the oracle's there",
    "agreement": "agreement with the oracle's expert",
    "agreement_switching": "agreement, switching documents",
    "experts_per_token": "experts per token",
    "ece": "expected calibration error",
    "imbalance": "load imbalance, std / mean",
    "max_violation": "MaxVio, max / mean - 1",
}
_OF_A_VARIANT = ("loss", "agreement", "experts per token", "tokens/s")
_VARIANT = (*_OF_A_VARIANT, *(f"{name}, switching" for name in _OF_A_VARIANT))
SPEED = (
    "Tokens per second are those of reading whole documents in batches of 16 on the worker that measured, the gate "
    "included and the router's scores not; they suffer from whatever else the machine did."
)


def markdown(figures: Figures) -> str:
    """The whole report; pictures lie beside it."""
    first = figures["seeds"][0]
    parts = [
        f"# Evaluation of {figures['release']}",
        _summary(figures),
        "## Loss by domain, nats per token (perplexity)",
        _matrix(first),
        "## Systems on the same documents",
        "Gain kept is (base - system) / (base - oracle); the oracle reads every token with its domain's own expert. In "
        "brackets 95 % intervals, paired bootstrap over documents."
        + "".join(f" {about}." for about in figures["peers"]),
        _systems(first),
        SPEED,
        f"![Share of the oracle's gain]({KEPT})",
        "### Routed mixture minus the others (below zero: the mixture is better)",
        _differences(first),
        "## Over seeds",
        _seeds(figures),
        "Every system, and the routed mixture minus it (below zero: the mixture is better), with 95 % intervals over "
        "seeds and documents. Each seed draws documents of its own; peers that are trained read those of one seed or, "
        "where fewer were asked for, of several.",
        _systems_over_seeds(figures["systems_over_seeds"]),
        "## Who is used",
        _utilisation(first["routing"]["utilisation"], list(figures["experts"])),
        f"![Utilisation]({UTILISATION})",
        "## Confidence",
        _calibration(first["routing"]["calibration"]),
        f"![Confidence and how often it is right]({RELIABILITY})",
    ]
    if first["around_switch"] is not None:
        parts += ["## Around a switch of domain", f"![Loss around a switch]({AROUND_SWITCH})"]
    if figures["sweep"]:
        parts += ["## Quality against computation", _sweep(figures["sweep"]), f"![Sweep]({SWEEP})"]
    if len(figures["filter_sweep"]) > 1:
        parts += ["## Other constants of the router's filter", _filter_sweep(figures)]
    if len(figures["evidence_sweep"]) > 1:
        parts += ["## Other evidence under the router's filter", _evidence_sweep(figures["evidence_sweep"])]
    if figures["newcomers"]:
        parts += ["## Each expert taken out and added back", _newcomers(figures["newcomers"])]
    if figures["unknown"] is not None:
        parts += ["## Text of no known domain", _unknown(figures["unknown"])]
    return "\n\n".join(parts) + "\n"


def headline(figures: Figures) -> str:
    """One sentence for the job's history."""
    over = figures["over_seeds"]
    told = [f"loss {over['loss']['mean']:.4f}"]
    if "kept" in over:
        told.append(f"{over['kept']['mean']:.3f} of the oracle's gain kept")
    if "kept_switching" in over:
        told.append(f"{over['kept_switching']['mean']:.3f} where documents switch")
    told.append(f"{over['experts_per_token']['mean']:.2f} experts per token")
    return f"{figures['release']}: {', '.join(told)}."


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float | None] | None, *, signed: bool = False) -> str:
    """A value with its interval, or a dash for what is not defined."""
    if not values or values[0] is None:
        return "-"
    sign = "+" if signed else ""
    value, low, high = (math.nan if one is None else one for one in values)
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def _summary(figures: Figures) -> str:
    gate = figures["gate"]
    kept = "scores above " + f"{gate['threshold']:g}" if gate["gate_type"] == "threshold" else "the best scores"
    graph = "with a cooperation graph" if figures["graph"] else "without a cooperation graph"
    domains = ", ".join(
        domain if domain == expert else f"{domain} (expert {expert})" for domain, expert in figures["domains"].items()
    )
    first = figures["seeds"][0]
    return (
        f"{headline(figures)}\n\nBase model {figures['base_model']}, experts {', '.join(figures['experts'])}; a "
        f"{figures['router_kind']} router that keeps {kept}, at most {gate['max_experts']} experts per token, {graph}. "
        f"Held-out text of {domains}: {first['num_documents']} documents with {first['num_tokens']} tokens to predict, "
        f"and {first['num_switching']} documents that switch, per seed; seeds "
        f"{', '.join(str(seed['seed']) for seed in figures['seeds'])}. Tables without a seed are of the first."
    )


def _matrix(seed: Figures) -> str:
    domains = list(seed["systems"][ROUTED]["domains"])
    rows = [
        [
            name,
            *(f"{row['domains'][domain]:.3f} ({math.exp(min(row['domains'][domain], 99)):.2f})" for domain in domains),
        ]
        for name, row in seed["systems"].items()
    ]
    return table(["system", *domains], rows)


def _systems(seed: Figures) -> str:
    rows = [
        [
            name,
            spread(row["whole"].get("loss")),
            spread(row["whole"].get("kept")),
            spread(row["later"].get("kept")),
            spread(row["switching"].get("loss")),
            spread(row["switching"].get("kept")),
            spread(row["after_switch"].get("loss")),
            _number(row["tokens_per_s"], 0),
        ]
        for name, row in seed["systems"].items()
    ]
    header = ["system", "loss", "kept", "kept after 16 tokens", "loss, switching", "kept, switching"]
    return table([*header, "first 16 after a switch", "tokens/s"], rows)


def _differences(seed: Figures) -> str:
    rows = [
        [f"routed - {name}", spread(row["whole"], signed=True), spread(row["switching"], signed=True)]
        for name, row in seed["routed_minus"].items()
    ]
    return table(["difference, nats per token", "whole documents", "switching documents"], rows)


def _seeds(figures: Figures) -> str:
    rows = [
        [_NAMES[name], _number(row["mean"]), _number(row["least"]), _number(row["largest"])]
        for name, row in figures["over_seeds"].items()
    ]
    return table(["routed mixture", "mean", "least", "largest"], rows)


def _systems_over_seeds(found: Figures) -> str:
    columns = [("whole", "loss"), ("whole", "routed_minus"), ("switching", "loss"), ("switching", "routed_minus")]
    rows = [
        [name, *(spread(row.get(part, {}).get(key), signed=key == "routed_minus") for part, key in columns)]
        for name, row in found.items()
    ]
    header = ["system", "loss", "routed - system", "loss, switching", "routed - system, switching"]
    return table(header, rows)


def _utilisation(used: Figures, experts: Sequence[str]) -> str:
    names = [*experts, "base"]
    rows = [
        [name, f"{weight:.3f}", f"{tokens:.3f}"]
        for name, weight, tokens in zip(names, used["weight_C"], used["tokens_C"], strict=True)
    ]
    verdict = f"Load imbalance (std / mean) {used['imbalance']:.3f}, MaxVio {used['max_violation']:.3f}."
    return f"{table(['expert', 'mean gate weight', 'share of tokens'], rows)}\n\n{verdict}"


def _calibration(found: Figures) -> str:
    rows = [
        [f"{one['low']:.1f} - {one['high']:.1f}", *(f"{one[key]:.3f}" for key in ("share", "confidence", "accuracy"))]
        for one in found["bins"]
    ]
    verdict = (
        f"Mean confidence {found['confidence']:.3f}, right {found['accuracy']:.3f} of the time; expected calibration "
        f"error {found['ece']:.3f}."
    )
    return f"{table(['highest score', 'share of tokens', 'mean', 'right'], rows)}\n\n{verdict}"


def _sweep(rows: Sequence[Figures]) -> str:
    return table(["gate", *_VARIANT], [[row["gate"], *_variant(row)] for row in rows])


def _filter_sweep(figures: Figures) -> str:
    own = figures["filter"]
    rows = [[row["filter"], *_variant(row)] for row in figures["filter_sweep"]]
    about = (
        f"As released: stickiness {own['stickiness']:g}, temper {own['temper']:g}. One constant is changed at a time."
    )
    return f"{about}\n\n{table(['filter', *_VARIANT], rows)}"


def _evidence_sweep(rows: Sequence[Figures]) -> str:
    about = (
        "Evidence of token pairs and of the base model's states after a layer, with its weights. A router that reads "
        "states costs a pass through the layers below the tap for adapters that have weights there."
    )
    header = ["evidence", "weight of pairs", "of states", *_VARIANT]
    cells = [[row["evidence"], f"{row['bigram_weight']:g}", f"{row['trunk_weight']:g}", *_variant(row)] for row in rows]
    return f"{about}\n\n{table(header, cells)}"


def _variant(row: Figures) -> list[str]:
    def cells(part: dict[str, Any] | None) -> list[str]:
        if part is None:
            return ["-"] * 4
        return [
            _number(part["loss"], 4),
            _number(part["agreement"]),
            _number(part["experts_per_token"], 2),
            _number(part["tokens_per_s"], 0),
        ]

    return [*cells(row["whole"]), *cells(row.get("switching"))]


def _newcomers(found: Figures) -> str:
    header = ["newcomer", "loss without", "loss with", "gain of its expert kept", "others, mean", "others, worst"]
    rows = [
        [
            domain,
            _number(row["loss_without"]),
            _number(row["loss_with"]),
            _number(row["kept_by_newcomer"]),
            _number(row["old_domains"], 4, signed=True),
            _number(row["worst_old_domain"], 4, signed=True),
        ]
        for domain, row in found.items()
    ]
    return table(header, rows)


def _unknown(found: Figures) -> str:
    losses = table(["system", "loss"], [[name, _number(loss, 4)] for name, loss in found["losses"].items()])
    used = found["utilisation"]
    return (
        f"{losses}\n\nOver {found['num_documents']} documents the routed mixture minus the base model: "
        f"{spread(found['routed_minus_base'], signed=True)}. The base has {used['weight_C'][-1]:.3f} of the weight, "
        f"{found['experts_per_token']:.2f} experts speak per token, mean confidence {found['confidence']:.3f}."
    )
