"""The arguments of the benchmarks that train on real text."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results_file import RESULTS


def real_text_parser(name: str, about: str, *, seeds: Sequence[int], threads: int = 2) -> argparse.ArgumentParser:
    """Where text and models lie, where trainings and results go, the seeds; `about` is the module's first line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about.split("\n", maxsplit=1)[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with models/ and data/text/")
    parser.add_argument(
        "--work", type=Path, default=Path(".state") / name, help="where trainings and readings are kept"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--threads", type=int, default=threads)
    return parser
