"""The expert-by-domain matrix for people: as a table on the terminal and in Markdown."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def matrix_table(report: dict[str, Any]) -> Table:
    """Exact match and completion loss of every row on every domain."""
    domains = list(report["own_domain"])
    table = Table(title=f"Exact match / completion loss, {report['items_per_domain']} held-out items each")
    table.add_column("")
    for domain in domains:
        table.add_column(domain, justify="right")
    for row, cells in report["cells"].items():
        values = [
            f"{cells[domain]['exact_match']['value']:.1%} / {cells[domain]['completion_loss']:.2f}"
            for domain in domains
        ]
        table.add_row(row, *values)
    return table


def matrix_markdown(report: dict[str, Any]) -> str:
    """The full matrix with 95 % intervals, then each expert's gain on its own domain."""
    domains = list(report["own_domain"])
    lines = [_row("exact match", domains), _row("---", ["---:"] * len(domains))]
    for row, cells in report["cells"].items():
        lines.append(_row(row, [_share(cells[domain]["exact_match"]) for domain in domains]))
    lines += ["", _row("loss: completion (text)", domains), _row("---", ["---:"] * len(domains))]
    for row, cells in report["cells"].items():
        losses = [f"{cells[domain]['completion_loss']:.3f} ({cells[domain]['text_loss']:.3f})" for domain in domains]
        lines.append(_row(row, losses))
    lines += ["", _row("own expert against base", domains), _row("---", ["---:"] * len(domains))]
    own = [report["own_domain"][domain] for domain in domains]
    lines.append(_row("exact match, points", [_points(gains["exact_match_gain"]) for gains in own]))
    lines.append(_row("completion loss", [f"-{gains['completion_loss_reduction']:.1%}" for gains in own]))
    lines.append(_row("text loss", [f"-{gains['text_loss_reduction']:.1%}" for gains in own]))
    return "\n".join(lines) + "\n"


def _row(head: str, cells: list[str]) -> str:
    return f"| {head} | {' | '.join(cells)} |"


def _share(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} % [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def _points(estimate: dict[str, float]) -> str:
    return f"+{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
