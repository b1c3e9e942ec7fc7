"""What commands print: JSON for programs, or tables and fields for people. Progress goes to the error stream."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

_UNLIMITED: Final = 1000
"""Columns for output that goes to a file or a program: nothing is cut there."""

_SHORT_DIGEST: Final = 12


def print_json(answer: Any) -> None:
    """The API's answer as it came."""
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def print_page(answer: Mapping[str, Any], columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A page of a list; says on the error stream how to see the rest."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    out().print(table)
    if answer["has_more"]:
        typer.echo(f"There are more: --after {answer['data'][-1]['id']}", err=True)


def print_fields(fields: Mapping[str, object]) -> None:
    """One thing, a line for each of its fields that says something."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value not in (None, "", [], {}):
            table.add_row(name, cell(value))
    out().print(table)


def cell(value: object) -> str:
    """A value in a table; markup in it stays what it is."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def short(digest: str | None) -> str:
    """Enough of a digest to tell it from others."""
    return digest[:_SHORT_DIGEST] if digest else ""


def moment(told: str | None) -> str:
    """A time of the API in this machine's zone, to the second."""
    if told is None:
        return ""
    return datetime.fromisoformat(told).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(num_bytes: int) -> str:
    """Bytes in the unit that suits them."""
    number = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def out() -> Console:
    """The standard output, without markup: what people have written is printed as it is."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not sys.stdout.isatty():
        console.width = _UNLIMITED
    return console


def transfer(*, quiet: bool) -> Progress:
    """Progress bars of uploads and downloads."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
        transient=True,
    )
