"""Draw an answer with every token coloured by the expert that carried most of it, as in the README.

Usage, with the demo stack running: python docs/pictures/draw_tokens.py [--url http://127.0.0.1:8000] [--out FILE.png]
"""

import argparse
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

PROMPTS = {
    "math": "Problem: Paul finds 8 oranges in the museum and 5 at home. How many oranges are there in all?\nSolution:",
    "code": 'def collect(numbers):\n    """Return the count of the odd numbers in numbers."""\n',
    "factual": "Question: I would like to know: How do chemists write calcium?\nAnswer:",
    "creative": "Rhyme: In the sandy shore Pepper found a hat,\n",
    "mixed": "Task: Take the atomic number of neon and add 5.\n",
}
COLOURS = {
    "math": "#4C9BE8",
    "code": "#59B368",
    "factual": "#E8A33D",
    "creative": "#D6639A",
    "mixed": "#9B7FD1",
    "base": "#B8BCC4",
}
COLUMNS = 96
Piece = tuple[str, str | None, float]
"""Text, the expert that leads it (None: prompt text), and its weight."""

ROW_HEIGHT = 0.27


def answer(url: str, prompt: str) -> dict[str, Any]:
    """One greedy answer with its per-token gate weights."""
    body = {"inputs": prompt, "parameters": {"max_new_tokens": 40, "details": True, "stop": ["\n\n"]}}
    response = httpx.post(f"{url}/generate", json=body, timeout=60)
    response.raise_for_status()
    found: dict[str, Any] = response.json()
    return found


def pieces_of(url: str, prompt: str) -> list[Piece]:
    """The prompt, then each generated token with its leading expert and that expert's weight."""
    tokens = [token for token in answer(url, prompt)["details"]["tokens"] if not token["special"]]
    leaders = [max(token["routing"].items(), key=lambda item: item[1]) for token in tokens]
    generated = [(token["text"], *leader) for token, leader in zip(tokens, leaders, strict=True)]
    return [(prompt, None, 0.0), *generated]


def rows_of(pieces: list[Piece]) -> list[list[Piece]]:
    """The pieces cut into lines, with an empty line after them."""
    rows: list[list[Piece]] = [[]]
    for text, expert, weight in pieces:
        first, *others = text.split("\n")
        rows[-1].append((first, expert, weight))
        rows.extend([(part, expert, weight)] for part in others)
    while rows and not any(text for text, _, _ in rows[-1]):
        rows.pop()
    return [*rows, []]


def draw(rows: list[list[Piece]], path: Path) -> None:
    """One monospaced line per row; prompt text plain, generated tokens on their expert's colour."""
    figure, axes = plt.subplots(figsize=(11, ROW_HEIGHT * (len(rows) + 3)), dpi=130)
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(len(rows) + 1.8, -0.6)
    axes.axis("off")
    font = {"family": "monospace", "fontsize": 10.2, "va": "center"}
    for line, row in enumerate(rows):
        column = 0
        for text, expert, weight in row:
            if expert is not None:
                colour = COLOURS.get(expert, "#888888")
                axes.add_patch(
                    plt.Rectangle((column, line - 0.42), len(text), 0.84, color=colour, alpha=0.25 + 0.6 * weight, lw=0)
                )
            for offset, character in enumerate(text):
                axes.text(
                    column + offset + 0.5,
                    line,
                    character,
                    ha="center",
                    color="#1b1f24" if expert else "#6a737d",
                    **font,
                )
            column += len(text)
    for number, (expert, colour) in enumerate(COLOURS.items()):
        axes.add_patch(plt.Rectangle((number * 14, len(rows) + 0.7), 1.6, 0.8, color=colour, alpha=0.85, lw=0))
        axes.text(number * 14 + 2.2, len(rows) + 1.1, expert, color="#1b1f24", **font)
    figure.savefig(path, bbox_inches="tight", facecolor="white")


def main() -> None:
    """Ask the running stack and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("tokens.png"))
    arguments = parser.parse_args()
    draw([row for prompt in PROMPTS.values() for row in rows_of(pieces_of(arguments.url, prompt))], arguments.out)


if __name__ == "__main__":
    main()
