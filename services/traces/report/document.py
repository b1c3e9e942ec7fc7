"""Blocks of a report, as Markdown and as HTML. Names in them are other people's and are never markup."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .9rem; opacity: .85; max-width: 50rem; }
"""


@dataclass(frozen=True)
class Heading:
    """Of a section; the report's own is its title."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells of text, the first row above the others."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG beside the report, and what is to be seen on it."""

    file: str
    title: str
    caption: str


Block = Heading | Paragraph | Table | Picture


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The whole report; pictures lie beside it."""
    return "\n\n".join([f"# {_quoted(title)}", *map(_markdown, blocks)]) + "\n"


def html(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The whole report in one file that asks for no other; pictures are read from the folder."""
    body = "\n".join([f"<h1>{escape(title)}</h1>", *(_html(block, folder) for block in blocks)])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {_quoted(block.text)}"
    if isinstance(block, Paragraph):
        return _quoted(block.text)
    if isinstance(block, Picture):
        return f"![{_quoted(block.title)}]({block.file})\n\n*{_quoted(block.caption)}*"
    lines = [block.header, ["---"] * len(block.header), *block.rows]
    return "\n".join(f"| {' | '.join(map(_quoted, line))} |" for line in lines)


def _html(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"<h2>{escape(block.text)}</h2>"
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Picture):
        data = base64.b64encode((folder / block.file).read_bytes()).decode()
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{escape(block.title)}">'
            f"<figcaption>{escape(block.caption)}</figcaption></figure>"
        )
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in block.header)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
    return f'<div class="table"><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'


def _quoted(text: str) -> str:
    """What Markdown would take for markup, one line of it."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))
