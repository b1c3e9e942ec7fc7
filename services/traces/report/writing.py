"""The report of an analysis, as files."""

from pathlib import Path
from typing import Final

from services.traces.analysis import TraceAnalysis
from services.traces.report.contents import blocks
from services.traces.report.document import html, markdown

HTML: Final = "report.html"
MARKDOWN: Final = "report.md"


def write_report(analysis: TraceAnalysis, folder: Path, *, title: str) -> None:
    """`report.md` with its pictures, and `report.html` with them inside, into a folder that may hold other things."""
    contents = list(blocks(analysis, folder))
    (folder / MARKDOWN).write_text(markdown(title, contents), encoding="utf-8")
    (folder / HTML).write_text(html(title, contents, folder), encoding="utf-8")
