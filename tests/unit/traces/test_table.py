"""A trace is read as it was written, whatever tokens lack."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from services.traces.choices import NOBODY, Phase
from services.traces.description import Finding, Severity, TraceSource
from services.traces.table import Trace, TraceWriter, layer_file


def written(folder: Path, *, with_weights: bool = True) -> Trace:
    """Two layers; three sequences of two domains, of which the second has no token in layer 3."""
    folder.mkdir()
    with TraceWriter(folder, source=TraceSource.NATIVE, model="tiny") as writer:
        for domain, prompt in (("code", "code-0"), ("math", "math-0"), ("code", "code-1")):
            sequence = writer.add_sequence(domain, prompt)
            for layer in (1, 3):
                if (layer, sequence) == (3, 1):
                    continue
                writer.add(
                    layer,
                    sequence,
                    positions=[0, 1],
                    phases=Phase.PROMPT,
                    token_ids=[10 + sequence, 11],
                    experts=[[sequence, 4], [2, NOBODY]],
                    weights=[[0.75, 0.25], [1.0, 0.0]] if with_weights else None,
                )
                writer.add(
                    layer,
                    sequence,
                    positions=[2],
                    phases=[Phase.GENERATED],
                    token_ids=[12],
                    experts=[[layer, 0]],
                    weights=[[0.5, 0.5]] if with_weights else None,
                )
        writer.finish(
            num_experts={1: 5, 3: 5},
            findings=[Finding(code="one", severity=Severity.DEGENERATE, message="no", layers=(3,))],
            seed=7,
        )
    return Trace(folder)


class TestTrace:
    def test_choices_come_back(self, tmp_path: Path) -> None:
        trace = written(tmp_path / "trace")
        layer = trace.layer(1)

        assert trace.layers == [1, 3]
        assert trace.description.domains == ("code", "math")
        assert trace.description.num_tokens == 9
        assert trace.description.about == {"seed": 7}
        assert layer.starts.tolist() == [0, 3, 6, 9]
        assert layer.domains.tolist() == [0, 1, 0]
        assert layer.experts.tolist() == [[0, 4], [2, -1], [1, 0], [1, 4], [2, -1], [1, 0], [2, 4], [2, -1], [1, 0]]
        assert layer.weights is not None
        assert layer.weights[:3].tolist() == [[0.75, 0.25], [1.0, 0.0], [0.5, 0.5]]
        assert layer.token_ids is not None
        assert layer.token_ids.tolist() == [10, 11, 12, 11, 11, 12, 12, 11, 12]
        assert layer.sequences.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]

    def test_a_sequence_may_have_no_token_in_a_layer(self, tmp_path: Path) -> None:
        assert written(tmp_path / "trace").layer(3).starts.tolist() == [0, 3, 3, 6]

    def test_weights_that_nobody_told_are_none(self, tmp_path: Path) -> None:
        trace = written(tmp_path / "trace", with_weights=False)

        assert not trace.description.has_weights
        assert trace.layer(1).weights is None

    def test_phases_are_told_apart(self, tmp_path: Path) -> None:
        generated = written(tmp_path / "trace").layer(3).of(Phase.GENERATED)

        assert generated.experts.tolist() == [[3, 0], [3, 0]]
        assert generated.starts.tolist() == [0, 1, 1, 2]

    def test_domains_are_told_apart(self, tmp_path: Path) -> None:
        mathematics = written(tmp_path / "trace").layer(1).of_domains([1])

        assert mathematics.num_tokens == 3
        assert mathematics.starts.tolist() == [0, 0, 3, 3]

    def test_a_row_is_one_chosen_expert(self, tmp_path: Path) -> None:
        trace = written(tmp_path / "trace")
        rows = pq.read_table(layer_file(trace.folder, 1))

        assert rows.num_rows == trace.description.layers[0].num_rows == 15
        assert rows.slice(2, 1).to_pylist() == [
            {"sequence": 0, "position": 1, "phase": 0, "token_id": 11, "rank": 0, "expert": 2, "weight": 1.0}
        ]
        codecs = pq.ParquetFile(layer_file(trace.folder, 1)).metadata.row_group(0).column(0).compression
        assert codecs == "ZSTD"

    def test_findings_say_which_layers_are_of_no_use(self, tmp_path: Path) -> None:
        description = written(tmp_path / "trace").description

        assert description.is_degenerate(3)
        assert not description.is_degenerate(1)

    def test_a_layer_that_was_not_traced_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError):
            written(tmp_path / "trace").layer(2)

    def test_row_groups_do_not_show(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = written(tmp_path / "whole").layer(1)
        monkeypatch.setattr("services.traces.table._ROWS_PER_GROUP", 2)
        parts = written(tmp_path / "parts")

        assert pq.ParquetFile(layer_file(parts.folder, 1)).metadata.num_row_groups > 3
        assert parts.layer(1).experts.tolist() == whole.experts.tolist()

    def test_tokens_out_of_order_are_refused(self, tmp_path: Path) -> None:
        with TraceWriter(tmp_path, source=TraceSource.NATIVE) as writer:
            sequence = writer.add_sequence("code", "a")
            writer.add(0, sequence, positions=[4], phases=0, experts=[[1]])
            with pytest.raises(ValueError, match="out of order"):
                writer.add(0, sequence, positions=[4], phases=0, experts=[[1]])
