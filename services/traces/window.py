"""A few tokens of a trace, without reading the rest."""

from dataclasses import dataclass

import pyarrow.parquet as pq

from services.traces.table import Trace, layer_file


@dataclass(frozen=True)
class TokenChoices:
    """What one token chose in one layer, by falling weight."""

    position: int
    phase: int
    token_id: int | None
    experts: tuple[int, ...]
    weights: tuple[float, ...] | None


def choices_between(trace: Trace, layer: int, sequence: int, *, start: int, count: int) -> list[TokenChoices]:
    """The tokens of a sequence at positions start to start + count, those that there are; KeyError for a layer that
    was not traced. Only row groups that can hold them are read."""
    if layer not in trace.layers:
        raise KeyError(layer)
    wanted = [("sequence", "==", sequence), ("position", ">=", start), ("position", "<", start + count)]
    rows = pq.read_table(layer_file(trace.folder, layer), filters=wanted).to_pylist()
    tokens: dict[int, list[dict[str, int | float | None]]] = {}
    for row in rows:
        tokens.setdefault(row["position"], []).append(row)
    return [_token(position, own) for position, own in tokens.items()]


def _token(position: int, rows: list[dict[str, int | float | None]]) -> TokenChoices:
    first = rows[0]
    weights = tuple(float(row["weight"]) for row in rows if row["weight"] is not None)
    return TokenChoices(
        position=position,
        phase=int(first["phase"] or 0),
        token_id=int(first["token_id"]) if first["token_id"] is not None else None,
        experts=tuple(int(row["expert"] or 0) for row in rows),
        weights=weights if len(weights) == len(rows) else None,
    )
