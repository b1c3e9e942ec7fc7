"""The differences between two releases in lines for people."""

from collections.abc import Iterator
from typing import Any

from services.command_line.output import cell, short


def comparison_lines(comparison: dict[str, Any]) -> Iterator[str]:
    """A line for each difference, as `GET /releases/{a}/compare/{b}` tells them."""
    if comparison["same_content"]:
        yield f"{comparison['a']} and {comparison['b']} serve the same: {short(comparison['digest']['a'])}"
    yield from _experts(comparison["experts"])
    for part in ("base_fingerprint", "graph", "calibration"):
        if comparison[part] is not None:
            yield f"{part.replace('_', ' ')}: {_arrow(comparison[part], short)}"
    if comparison["router"] is not None:
        yield f"router: {_arrow(comparison['router']['digest'], short)}"
        for name, change in (comparison["router"]["settings"] or {}).items():
            yield f"  {name}: {_arrow(change, cell)}"
    if comparison["evaluation"] is not None:
        yield from _evaluation(comparison["evaluation"])


def _experts(experts: dict[str, Any]) -> Iterator[str]:
    for expert in experts["added"]:
        yield f"+ {expert['name']}@{expert['version']}"
    for expert in experts["removed"]:
        yield f"- {expert['name']}@{expert['version']}"
    for change in experts["changed"]:
        yield f"~ {change['name']}: @{change['a']['version']} → @{change['b']['version']}"
        for name, figure in change["metrics"].items():
            yield f"  {name}: {_arrow(figure, cell)}"
    if experts["reordered"]:
        yield "The experts of both stand in another order."


def _evaluation(evaluation: dict[str, Any]) -> Iterator[str]:
    for domain, change in evaluation["domains"].items():
        mark = "  (worse than is tolerated)" if domain in evaluation["regressions"] else ""
        yield f"loss in {domain}: {change['a']:.4f} → {change['b']:.4f} ({change['difference']:+.4f}){mark}"


def _arrow(change: dict[str, Any], show: Any) -> str:
    return f"{show(change['a']) or 'none'} → {show(change['b']) or 'none'}"
