"""What the router does where it is hard: many experts, related domains, unknown text, switches, large vocabularies.

    python -m benchmarks.router_studies STUDY... [--seeds 0 1 2] [--shared ../shared]

Everything goes through the product's own evidence, filter, gate and mixture. Trainings and readings in --work are
reused. Writes benchmarks/results/router_studies-STUDY-<date>.{json,md};
one of two settings alone is named in the file's name.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.real_text_arguments import real_text_parser
from benchmarks.results_file import machine, write_results
from benchmarks.router_studies import (
    after_switch,
    large_vocabularies,
    many_adapters,
    many_experts,
    shared_vocabulary,
    sweeps,
    table_sizes,
    unknown_text,
)
from benchmarks.router_studies.study import Bench, Study

_ROOT = Path(__file__).parents[2]
_SETTINGS = ("demo", "real text")
_STUDIES: dict[str, Callable[[Bench], Study]] = {
    "many-experts": many_experts.run,
    "many-adapters": many_adapters.run,
    "shared-vocabulary": shared_vocabulary.run,
    "unknown-text": unknown_text.run,
    "after-switch": after_switch.run,
    "large-vocabularies": large_vocabularies.run,
    "table-sizes": table_sizes.run,
    "sweeps": sweeps.run,
}


def main() -> None:
    """Run the studies one after the other and write the results of each."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    bench = Bench(
        shared=arguments.shared,
        demo=_ROOT / "demo",
        work=arguments.work,
        seeds=arguments.seeds,
        trainings=arguments.trainings,
        chosen=arguments.settings,
    )
    for name in arguments.studies:
        _write(name, _STUDIES[name](bench), arguments)


def _write(name: str, study: Study, arguments: argparse.Namespace) -> None:
    seeds = " ".join(map(str, arguments.seeds))
    stem = f"router_studies-{name}"
    command = f"python -m benchmarks.router_studies {name} --seeds {seeds} --trainings {arguments.trainings}"
    if tuple(arguments.settings) != _SETTINGS:
        stem += "".join(f"-{setting.replace(' ', '-')}" for setting in arguments.settings)
        command += " --settings " + " ".join(f"'{setting}'" for setting in arguments.settings)
    write_results(
        arguments.results / stem,
        title=study.title,
        about=f"`{command}`. Brackets: 95 % bootstrap over all seeds' documents; the JSON has every seed's value.",
        machine=machine(),
        table=study.tables,
        figures={"command": command, "seeds": list(arguments.seeds), **study.figures},
    )


def _arguments() -> argparse.Namespace:
    parser = real_text_parser("router_studies", __doc__, seeds=[0, 1, 2], threads=1)
    parser.add_argument("studies", nargs="+", choices=_STUDIES, metavar="STUDY", help=", ".join(_STUDIES))
    parser.add_argument("--settings", nargs="+", choices=_SETTINGS, default=_SETTINGS)
    parser.add_argument("--trainings", type=int, default=3, help="of real text's experts; seeds beyond share them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
