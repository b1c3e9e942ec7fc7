"""A report says what was found, with pictures, and takes names for names."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.trace_statistics.planted_choices import planted
from services.traces.analysis import analyse
from services.traces.description import Finding, Severity, TraceSource
from services.traces.report.writing import write_report
from services.traces.statistics.results import AnalysisOptions
from services.traces.table import Trace, TraceWriter

QUICK = AnalysisOptions(
    num_permutations=99, num_resamples=99, num_matrix_resamples=50, max_shuffles=10, cache_tokens=100
)
NAMES = ("<script>alert(1)</script>", "a|b`*", "prose")


def trace_of(folder: Path, *, top_k: int, sequences: int, num_layers: int = 1, degenerate: bool = False) -> Trace:
    folder.mkdir()
    domains = np.repeat(np.arange(3), sequences)
    choices = planted(domains=domains, num_tokens=30, seed=1, top_k=top_k, preference=0.3, num_experts=5)
    with TraceWriter(folder, source=TraceSource.MIXTURE) as writer:
        for number, domain in enumerate(domains.tolist()):
            writer.add_sequence(NAMES[domain], f"prompt {number}")
            tokens = slice(*choices.starts[number : number + 2])
            for layer in range(num_layers):
                writer.add(layer, number, positions=np.arange(30), phases=1, experts=choices.experts[tokens])
        stuck = Finding(code="constant", severity=Severity.DEGENERATE, message="nothing <b>but</b> one set")
        writer.finish(num_experts=dict.fromkeys(range(num_layers), 5), experts=("code", "math", "law", "verse", "base"),
                      findings=[stuck] if degenerate else [])  # fmt: skip
    return Trace(folder)


class Seen(HTMLParser):
    """Tags, and what is asked for from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]


@pytest.mark.parametrize(("top_k", "sequences", "num_layers"), [(1, 5, 1), (2, 5, 2), (1, 1, 2)])
def test_a_report_is_whole(tmp_path: Path, top_k: int, sequences: int, num_layers: int) -> None:
    trace = trace_of(tmp_path / "trace", top_k=top_k, sequences=sequences, num_layers=num_layers)
    analysis = analyse(trace, options=QUICK)
    write_report(analysis, tmp_path, title="Our mixture")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    seen = Seen()
    seen.feed((tmp_path / "report.html").read_text(encoding="utf-8"))

    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert {"cache.png", "frequency-0.png", "transitions-0.png"} <= set(pictures)
    for by_layer in ("association.png", "stickiness.png"):
        assert (by_layer in pictures) == (num_layers > 1)
    assert ("coactivation-0.png" in pictures) == (top_k > 1)
    assert all(f"]({name})" in text for name in pictures)
    assert seen.tags.count("img") == len(pictures)
    assert all(source.startswith("data:image/png;base64,") for source in seen.sources)
    for name in pictures:
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 400
            assert len(set(picture.convert("L").tobytes())) > 10
    assert f"{3 * sequences} prompts, {90 * sequences} tokens" in text


def test_names_are_never_markup(tmp_path: Path) -> None:
    analysis = analyse(trace_of(tmp_path / "trace", top_k=1, sequences=1), options=QUICK)
    write_report(analysis, tmp_path, title="<i>")
    seen = Seen()
    seen.feed((tmp_path / "report.html").read_text(encoding="utf-8"))

    assert not {"script", "i", "b"} & set(seen.tags)
    assert "<script>" not in (tmp_path / "report.md").read_text(encoding="utf-8").replace("\\<script\\>", "")
    assert "a\\|b\\`\\*" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_degenerate_trace_gets_its_reason_and_no_figure(tmp_path: Path) -> None:
    analysis = analyse(trace_of(tmp_path / "trace", top_k=1, sequences=1, degenerate=True), options=QUICK)
    write_report(analysis, tmp_path, title="Degenerate")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")

    assert "nothing &lt;b&gt;but&lt;/b&gt; one set" in text
    assert "No layer is left" in text
    assert not list(tmp_path.glob("*.png"))
