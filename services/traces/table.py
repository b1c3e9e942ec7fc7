"""A trace on disk: `trace.json`, `sequences.parquet`, and for every layer `choices/layer-NNNNN.parquet`.

A row of the choices is one chosen expert: sequence, position of the token in it, phase, the token's id (null if it is
not known), rank (0 for the first choice), expert, weight (null if it is not known). Rows are in the order of sequence,
position, rank; a row group ends with a token. Files are compressed with zstd.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from services.traces.choices import NOBODY, LayerChoices
from services.traces.description import Finding, TraceDescription, TracedLayer, TraceSource

DESCRIPTION: Final = "trace.json"
SEQUENCES: Final = "sequences.parquet"
CHOICES: Final = "choices"
_ROWS_PER_GROUP: Final = 1_000_000
_COMPRESSION: Final = "zstd"
_CHOICE: Final = pa.schema([
    pa.field("sequence", pa.uint32(), nullable=False),
    pa.field("position", pa.uint32(), nullable=False),
    pa.field("phase", pa.uint8(), nullable=False, metadata={"codes": "0 prompt, 1 generated, 2 padding"}),
    pa.field("token_id", pa.int32()),
    pa.field("rank", pa.uint8(), nullable=False),
    pa.field("expert", pa.uint16(), nullable=False),
    pa.field("weight", pa.float32()),
])  # fmt: skip
_SEQUENCE: Final = pa.schema([("sequence", pa.uint32()), ("domain", pa.string()), ("prompt", pa.string())])


@dataclass(frozen=True)
class TracedSequence:
    """One prompt with its answer, or whatever else was read from one beginning: one observation."""

    domain: str
    prompt: str
    """Its name within the trace."""


class TraceWriter:
    """Writes a trace into an empty folder, bounded in memory by a row group for each layer. Sequences come one after
    another in every layer, each token once and with all its experts."""

    def __init__(self, folder: Path, *, source: TraceSource, model: str | None = None) -> None:
        self._folder = folder
        self._source = source
        self._model = model
        self._sequences: list[TracedSequence] = []
        self._layers: dict[int, _LayerWriter] = {}
        (folder / CHOICES).mkdir()

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for layer in self._layers.values():
            layer.close()

    def add_sequence(self, domain: str, prompt: str) -> int:
        """The number of a new sequence."""
        self._sequences.append(TracedSequence(domain, prompt))
        return len(self._sequences) - 1

    def add(  # noqa: PLR0913
        self,
        layer: int,
        sequence: int,
        *,
        positions: ArrayLike,
        phases: ArrayLike,
        experts: ArrayLike,
        weights: ArrayLike | None = None,
        token_ids: ArrayLike | None = None,
    ) -> None:
        """Tokens [t] of one sequence, after those that it already has: `experts` [t, k] by falling weight, `NOBODY`
        behind them where a token has fewer; `phases` of each or of all."""
        if layer not in self._layers:
            self._layers[layer] = _LayerWriter(layer_file(self._folder, layer))
        experts_TK = np.asarray(experts, dtype=np.int64)
        num_tokens = len(experts_TK)
        self._layers[layer].add(
            sequences=np.full(num_tokens, sequence),
            positions=np.asarray(positions),
            phases=np.broadcast_to(np.asarray(phases, dtype=np.uint8), num_tokens),
            experts=experts_TK,
            weights=np.asarray(weights, dtype=np.float32) if weights is not None else None,
            token_ids=np.asarray(token_ids) if token_ids is not None else None,
        )

    def finish(
        self,
        *,
        num_experts: dict[int, int],
        experts: Sequence[str] = (),
        findings: Iterable[Finding] = (),
        model: str | None = None,
        **about: str | float | bool | None,
    ) -> TraceDescription:
        """Close the tables and write the description; `num_experts` of every layer that rows were added to, `model` if
        it was not known at the start."""
        for layer in self._layers.values():
            layer.close()
        domains = tuple(dict.fromkeys(sequence.domain for sequence in self._sequences))
        rows = [
            {"sequence": number, "domain": each.domain, "prompt": each.prompt}
            for number, each in enumerate(self._sequences)
        ]
        pq.write_table(pa.Table.from_pylist(rows, _SEQUENCE), self._folder / SEQUENCES, compression=_COMPRESSION)
        description = TraceDescription(
            source=self._source,
            model=model or self._model,
            experts=tuple(experts),
            domains=domains,
            num_sequences=len(self._sequences),
            num_tokens=max((layer.num_tokens for layer in self._layers.values()), default=0),
            layers=tuple(
                TracedLayer(
                    layer=number, num_experts=num_experts[number], top_k=max(layer.top_k, 1), num_rows=layer.num_rows
                )
                for number, layer in sorted(self._layers.items())
            ),
            has_weights=all(layer.has_weights for layer in self._layers.values()),
            has_token_ids=all(layer.has_token_ids for layer in self._layers.values()),
            findings=tuple(findings),
            about=about,
        )
        (self._folder / DESCRIPTION).write_text(description.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return description


class Trace:
    """A trace that was written, read layer by layer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.description = TraceDescription.model_validate_json((folder / DESCRIPTION).read_text(encoding="utf-8"))
        table = pq.read_table(folder / SEQUENCES, schema=_SEQUENCE)
        self.sequences = [
            TracedSequence(domain, prompt)
            for domain, prompt in zip(table["domain"].to_pylist(), table["prompt"].to_pylist(), strict=True)
        ]
        index = {domain: number for number, domain in enumerate(self.description.domains)}
        self._domains = np.array([index[sequence.domain] for sequence in self.sequences], dtype=np.int64)

    @property
    def layers(self) -> list[int]:
        """Their numbers."""
        return [layer.layer for layer in self.description.layers]

    def layer(self, number: int) -> LayerChoices:
        """One layer's choices, in memory. Raises KeyError for a layer that was not traced."""
        traced = next((layer for layer in self.description.layers if layer.layer == number), None)
        if traced is None:
            raise KeyError(number)
        groups = list(_row_groups(layer_file(self.folder, number), traced.top_k))
        sequences = np.concatenate([group.sequences for group in groups])
        counts = np.bincount(sequences, minlength=len(self.sequences))
        return LayerChoices(
            layer=number,
            num_experts=traced.num_experts,
            experts=np.concatenate([group.experts for group in groups]),
            weights=np.concatenate([group.weights for group in groups]) if self.description.has_weights else None,
            token_ids=np.concatenate([group.token_ids for group in groups]) if self.description.has_token_ids else None,
            phases=np.concatenate([group.phases for group in groups]),
            starts=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
            domains=self._domains,
        )


def layer_file(folder: Path, layer: int) -> Path:
    """Where a layer's choices are."""
    return folder / CHOICES / f"layer-{layer:05}.parquet"


class _LayerWriter:
    """One layer's file, written a row group at a time."""

    def __init__(self, file: Path) -> None:
        self.num_tokens = self.num_rows = self.top_k = 0
        self.has_weights = self.has_token_ids = True
        self._writer = pq.ParquetWriter(file, _CHOICE, compression=_COMPRESSION)
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0
        self._last = (-1, -1)

    def add(
        self,
        *,
        sequences: NDArray[Any],
        positions: NDArray[Any],
        phases: NDArray[np.uint8],
        experts: NDArray[np.int64],
        weights: NDArray[np.float32] | None,
        token_ids: NDArray[Any] | None,
    ) -> None:
        if not len(experts):
            return
        if (int(sequences[0]), int(positions[0])) <= self._last or np.any(np.diff(positions) <= 0):
            raise ValueError(f"tokens out of order: sequence {sequences[0]}, position {positions[0]} and after")
        self._last = (int(sequences[-1]), int(positions[-1]))
        self.has_weights &= weights is not None
        self.has_token_ids &= token_ids is not None
        chosen = experts != NOBODY
        tokens, ranks = np.nonzero(chosen)
        self.num_tokens += len(experts)
        self.num_rows += len(tokens)
        self.top_k = max(self.top_k, int(ranks.max(initial=-1)) + 1)
        columns = (
            sequences[tokens],
            positions[tokens],
            phases[tokens],
            token_ids[tokens] if token_ids is not None else [None] * len(tokens),
            ranks,
            experts[chosen],
            weights[chosen] if weights is not None else [None] * len(tokens),
        )
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, _CHOICE, strict=True)]
        self._waiting.append(pa.record_batch(arrays, schema=_CHOICE))
        self._num_waiting += len(tokens)
        if self._num_waiting >= _ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what waits; more than once does no harm."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, _CHOICE), row_group_size=self._num_waiting)
        self._waiting, self._num_waiting = [], 0


@dataclass(frozen=True)
class _Tokens:
    """The tokens of one row group."""

    sequences: NDArray[np.int64]
    phases: NDArray[np.uint8]
    token_ids: NDArray[np.int64]
    experts: NDArray[np.int32]
    weights: NDArray[np.float32]


def _row_groups(file: Path, top_k: int) -> Iterator[_Tokens]:
    with pq.ParquetFile(file) as table:
        for number in range(table.num_row_groups):
            yield _tokens(table.read_row_group(number), top_k)


def _tokens(rows: pa.Table, top_k: int) -> _Tokens:
    ranks = rows["rank"].to_numpy()
    # Every token has a first choice.
    first = np.flatnonzero(ranks == 0)
    token = np.cumsum(ranks == 0) - 1
    experts = np.full((len(first), top_k), NOBODY, dtype=np.int32)
    weights = np.zeros((len(first), top_k), dtype=np.float32)
    experts[token, ranks] = rows["expert"].to_numpy()
    weights[token, ranks] = rows["weight"].fill_null(0.0).to_numpy()
    return _Tokens(
        sequences=rows["sequence"].to_numpy()[first].astype(np.int64),
        phases=rows["phase"].to_numpy()[first],
        token_ids=rows["token_id"].fill_null(0).to_numpy()[first].astype(np.int64),
        experts=experts,
        weights=weights,
    )
