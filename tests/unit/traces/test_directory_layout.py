"""The requirements' layout: the folders, files and fields that their analysis reads."""

import json
import tarfile
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.shared.config import TraceSettings
from services.shared.schemas.trace_import import ImportOptions
from services.traces.choices import Phase
from services.traces.description import TraceDescription, TracedLayer, TraceSource
from services.traces.directory_layout import DirectoryLayout
from services.traces.importers.importing import import_trace
from services.traces.importers.source_file import Reading, SourceFile
from services.traces.table import Trace

PHASES = np.array([Phase.PROMPT, Phase.PROMPT, Phase.GENERATED], dtype=np.uint8)
LAYERS = {
    0: (np.array([[3, 1], [2, -1], [0, 3]]), np.array([[0.75, 0.25], [1.0, 0.0], [0.5, 0.5]], dtype=np.float32)),
    5: (np.array([[1, 2], [1, 0], [3, 0]]), np.array([[0.75, 0.25], [0.9, 0.1], [0.5, 0.5]], dtype=np.float32)),
}
DESCRIPTION = TraceDescription(
    source=TraceSource.NATIVE,
    model="tiny",
    domains=("code", "creative writing"),
    num_sequences=3,
    num_tokens=9,
    layers=tuple(TracedLayer(layer=layer, num_experts=4, top_k=2, num_rows=18) for layer in LAYERS),
    has_weights=True,
    has_token_ids=True,
    about={},
)


@pytest.fixture(name="experiment")
def unpacked(tmp_path: Path) -> Path:
    with DirectoryLayout(tmp_path, experiment="mine", on=date(2026, 1, 26), prompts='{"prompts": []}\n') as layout:
        layout.add("code", "code-1", PHASES, LAYERS)
        layout.add("code", "code/2 ../x", PHASES, LAYERS)
        layout.add("creative writing", "a", PHASES, LAYERS)
        layout.finish(DESCRIPTION)
    with tarfile.open(layout.file) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "mine"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


class TestLayout:
    def test_is_read_by_the_requirements_first_phase(self, experiment: Path) -> None:
        counts: Counter[tuple[str, int]] = Counter()
        for domain_dir in sorted(experiment.glob("domain-*")):
            for token_file in (domain_dir / "traces").glob("token-*.json"):
                for entry in read(token_file)["entries"]:
                    if entry["operation_type"] == "MUL_MAT_ID" and entry["expert_ids"]:
                        assert {"token_id", "layer_id", "timestamp_relative_ms"} <= entry.keys()
                        counts.update((domain_dir.name, expert) for expert in entry["expert_ids"][:4])

        assert counts["domain-1-code", 3] == 3
        assert sum(counts.values()) == 2 * 11

    def test_a_token_is_a_file_and_a_layers_choice_an_entry(self, experiment: Path) -> None:
        token = read(experiment / "domain-1-code" / "traces" / "token-00002.json")

        assert token["token_id"] == 2
        assert token["metadata"]["total_entries"] == 2
        assert [entry["layer_id"] for entry in token["entries"]] == [0, 5]
        assert [entry["phase"] for entry in token["entries"]] == ["GENERATE", "GENERATE"]
        assert token["entries"][0]["expert_ids"] == [0, 3]
        assert token["entries"][0]["expert_weights"] == [0.5, 0.5]

    def test_nobody_is_not_an_expert(self, experiment: Path) -> None:
        token = read(experiment / "domain-1-code" / "traces" / "token-00001.json")

        assert token["entries"][0]["expert_ids"] == [2]
        assert token["entries"][0]["num_experts"] == 1
        assert token["entries"][0]["phase"] == "PROMPT"

    def test_further_prompts_have_folders_of_their_own_inside_their_domain(self, experiment: Path) -> None:
        folders = sorted(str(path.parent.relative_to(experiment)) for path in experiment.rglob("traces"))

        assert folders == ["domain-1-code", "domain-1-code/code-2-..-x", "domain-2-creative-writing"]

    def test_says_what_it_is(self, experiment: Path) -> None:
        summary = read(experiment / "summary.json")

        assert (summary["experiment"], summary["date"], summary["model"]) == ("mine", "2026-01-26", "tiny")
        assert (summary["num_experts"], summary["top_k"]) == (4, 2)
        assert [(one["id"], one["domain"], one["tokens"]) for one in summary["domains"]] == [
            ("domain-1-code", "code", 6),
            ("domain-2-creative-writing", "creative writing", 3),
        ]
        assert read(experiment / "prompts.json") == {"prompts": []}

    def test_holds_nothing_that_was_not_measured(self, experiment: Path) -> None:
        assert not list(experiment.rglob("graphs"))
        assert not list(experiment.rglob("buffer-timeline.json"))

    def test_comes_back_by_its_import(self, tmp_path: Path, experiment: Path) -> None:
        for folder in ("trace", "scratch"):
            (tmp_path / folder).mkdir()
        files = [SourceFile("mine.tar.gz", tmp_path / "mine.tar.gz")]
        reading = Reading(ImportOptions(), TraceSettings(), stop_if_asked=lambda: None)

        description = import_trace(files, tmp_path / "trace", scratch=tmp_path / "scratch", reading=reading)

        trace = Trace(tmp_path / "trace")
        assert experiment.is_dir()
        assert description.source == TraceSource.TOKEN_JSON
        assert description.domains == ("code", "creative writing")
        assert description.model == "tiny"
        assert trace.layers == [0, 5]
        assert not {finding.code for finding in description.findings} & {"warm_up", "first_token_of_prompt"}
        for number, (experts, _) in LAYERS.items():
            layer = trace.layer(number)
            assert layer.num_experts == 4
            assert layer.starts.tolist() == [0, 3, 6, 9]
            assert layer.phases.tolist() == PHASES.tolist() * 3
            assert layer.experts.tolist() == experts.tolist() * 3
