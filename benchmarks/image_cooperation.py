"""Does a cooperation graph help image experts? The published figures again, and a stronger network with its controls.

    python -m benchmarks.image_cooperation published|strong [--part NAME ...] [--seeds 0 1 2] [--work DIR] [--data DIR]
                                           [--epochs 10] [--images 50000]

Every run is a training of its own in --work; finished ones are reused and broken-off ones go on from their last epoch,
so the command may be stopped and called again. Writes benchmarks/results/image_cooperation-<suite>-<date>.{json,md} of
whatever is finished. Fewer epochs or training pictures make a table of its own, named after both.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.results_file import machine, write_results
from services.shared.schemas.image_cooperation import ImageCooperationJobSpec
from services.trainer_worker.demo.intervals import paired_difference
from services.trainer_worker.image_cooperation.artifact import figures_of, write_artifact
from services.trainer_worker.image_cooperation.image_files import image_folder
from services.trainer_worker.image_cooperation.images import ImageData, ImageSet
from services.trainer_worker.image_cooperation.recipe import recipe_of
from services.trainer_worker.image_cooperation.training import Outcome, train_images

_RESULTS = Path(__file__).parent / "results"
_EPOCHS = 10
_IMAGES = 50_000
_SWEEP = {"hyperparameters": {"l1_step": "proximal", "graph_learning_rate": 1e-3}}


@dataclass(frozen=True)
class Run:
    """One line of the table: what is changed, the published figure if there is one, and what it is compared with."""

    name: str
    part: str
    fields: Mapping[str, Any]
    published: float | None = None
    control: str | None = None


PUBLISHED = (
    Run("k=1", "figures", {"graph": "none", "top_k": 1}, 0.4362),
    Run("no graph, k=2", "figures", {"graph": "none"}, 0.4636),
    Run("graph, k=2", "figures", {}, 0.4807, "no graph, k=2"),
    Run("graph, k=3", "figures", {"top_k": 3}, 0.4958, "no graph, k=3"),
    Run("no graph, k=3", "controls", {"graph": "none", "top_k": 3}),
    Run("frozen random graph, k=2", "controls", {"graph": "frozen"}, None, "no graph, k=2"),
    Run("one learned scalar, k=2", "controls", {"graph": "scalar"}, None, "no graph, k=2"),
    Run("proximal, l1 0, k=2", "sweep", {"l1": 0.0, **_SWEEP}, None, "no graph, k=2"),
    Run("proximal, l1 0.01, k=2", "sweep", {"l1": 0.01, **_SWEEP}, None, "no graph, k=2"),
    Run("proximal, l1 0.1, k=2", "sweep", {"l1": 0.1, **_SWEEP}, None, "no graph, k=2"),
    Run("proximal, l1 1, k=2", "sweep", {"l1": 1.0, **_SWEEP}, None, "no graph, k=2"),
    Run("all 8 experts, no graph", "dense", {"graph": "none", "top_k": 8}),
)
STRONG = (
    Run("no graph, k=2", "figures", {"graph": "none"}),
    Run("graph, k=2", "figures", {}, None, "no graph, k=2"),
    Run("one learned scalar, k=2", "controls", {"graph": "scalar"}, None, "no graph, k=2"),
    Run("frozen random graph, k=2", "controls", {"graph": "frozen"}, None, "no graph, k=2"),
    Run("graph, l1 0, k=2", "sweep", {"l1": 0.0}, None, "no graph, k=2"),
    Run("graph, l1 0.3, k=2", "sweep", {"l1": 0.3}, None, "no graph, k=2"),
    Run("no graph, k=1", "teams", {"graph": "none", "top_k": 1}),
    Run("no graph, k=3", "teams", {"graph": "none", "top_k": 3}),
    Run("graph, k=3", "teams", {"top_k": 3}, None, "no graph, k=3"),
)


def main() -> None:
    """Train what is not yet trained, then write the table of all that is."""
    arguments = _arguments()
    runs = PUBLISHED if arguments.suite == "published" else STRONG
    wanted = [run for run in runs if not arguments.part or run.part in arguments.part]
    torch.set_num_threads(arguments.threads)
    data: ImageData | None = None
    for seed in arguments.seeds:
        for run in wanted:
            folder = _folder(arguments, run, seed)
            if not (folder / "result.json").exists() and not arguments.report_only:
                data = data or _data(arguments)
                _train(arguments, run, seed, data, folder)
    _write(arguments, runs)


def _data(arguments: argparse.Namespace) -> ImageData:
    """All test pictures, and the first `--images` for training."""
    data = image_folder(arguments.data)
    first = slice(arguments.images)
    return replace(data, train=ImageSet(data.train.pixels_NHWC[first], data.train.labels_N[first]))


def _train(arguments: argparse.Namespace, run: Run, seed: int, data: ImageData, folder: Path) -> None:
    fields = {"setting": arguments.suite, "seed": seed, "num_epochs": arguments.epochs, **run.fields}
    spec = ImageCooperationJobSpec.model_validate(fields)
    recipe = recipe_of(spec)
    wall, processor = time.monotonic(), time.process_time()
    outcome = train_images(
        data, recipe, folder=folder / "checkpoints", on_progress=lambda _: None, should_stop=lambda: False
    )
    figures = figures_of(outcome.history, data=data, recipe=recipe)
    figures |= {
        "minutes": (time.monotonic() - wall) / 60,
        "processor_minutes": (time.process_time() - processor) / 60,
        "right": np.packbits(_right(outcome, data)).tobytes().hex(),
    }
    write_artifact(folder, outcome, data=data, recipe=recipe, num_examples=64)
    (folder / "result.json").write_text(json.dumps(figures) + "\n")
    print(f"{run.name}, seed {seed}: {figures['accuracy']:.4f}, {figures['minutes']:.1f} min", flush=True)


def _right(outcome: Outcome, data: ImageData) -> np.ndarray:
    answers_N = torch.cat([mixed.class_logits_NC for mixed in outcome.answers]).argmax(dim=1).numpy()
    right_N: np.ndarray = answers_N == data.test.labels_N
    return right_N


def _write(arguments: argparse.Namespace, runs: Sequence[Run]) -> None:
    finished = {run.name: dict(_finished(arguments, run)) for run in runs}
    rows = [_row(run, finished) for run in runs if finished[run.name]]
    header = [
        "variant", "seeds", "accuracy, mean ± sd", "published", "minus its control, same seeds, 95 % interval",
        "exact zeros in A", "below 0.01", "diversity", "processor minutes",
    ]  # fmt: skip
    table = "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))
    name = _name(arguments)
    write_results(
        _RESULTS / f"image_cooperation-{name}",
        title=f"Image cooperation, {name}",
        about=(
            f"`python -m benchmarks.image_cooperation {arguments.suite}`, {arguments.epochs} epochs over the first "
            f"{arguments.images:,} training pictures. Accuracy on all test pictures after the last epoch. "
            "The interval is Student's, over seeds (same seed: same experts, gate and order of pictures); of one seed "
            "alone a bootstrap over the test pictures, which knows nothing of other seeds."
        ),
        machine=machine(),
        table=table,
        figures={
            "runs": {
                run.name: {seed: _shown(figures) for seed, figures in finished[run.name].items()}
                for run in runs
                if finished[run.name]
            }
        },
    )


def _shown(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What the results file keeps of a run: its figures at the end, and its accuracy and loss epoch by epoch."""
    epochs = figures["epochs"]
    return {
        **{name: value for name, value in figures.items() if name not in {"right", "epochs"}},
        "accuracy_by_epoch": [epoch["accuracy"] for epoch in epochs],
        "test_loss_by_epoch": [round(epoch["test_loss"], 4) for epoch in epochs],
        "adjacency": epochs[-1]["adjacency"],
    }


def _finished(arguments: argparse.Namespace, run: Run) -> Iterator[tuple[int, dict[str, Any]]]:
    for path in sorted(arguments.work.glob(f"{_name(arguments)}/{_slug(run)}/seed-*/result.json")):
        yield int(path.parent.name.removeprefix("seed-")), json.loads(path.read_text())


def _row(run: Run, finished: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    by_seed = finished[run.name]
    accuracies = [figures["accuracy"] for figures in by_seed.values()]
    edges = [figures["edges"] for figures in by_seed.values() if figures["edges"] is not None]
    diversities = [figures["diversity"] for figures in by_seed.values() if figures["diversity"] is not None]
    return [
        run.name,
        str(len(by_seed)),
        f"{np.mean(accuracies):.2%}" + (f" ± {np.std(accuracies, ddof=1):.2%}" if len(accuracies) > 1 else ""),
        "" if run.published is None else f"{run.published:.2%}",
        "" if run.control is None else _difference(by_seed, finished[run.control]),
        f"{np.mean([edge['exact_zeros'] for edge in edges]):.0%}" if edges else "",
        f"{np.mean([edge['nearly_zero'] for edge in edges]):.0%}" if edges else "",
        f"{np.mean(diversities):.3f}" if diversities else "",
        f"{np.mean([figures['processor_minutes'] for figures in by_seed.values()]):.1f}",
    ]


def _difference(by_seed: Mapping[int, Mapping[str, Any]], control: Mapping[int, Mapping[str, Any]]) -> str:
    """Mean gain over the control in points, with Student's interval over the seeds that both have."""
    seeds = [seed for seed in by_seed if seed in control]
    if not seeds:
        return ""
    if len(seeds) == 1:
        gain = paired_difference(_right_of(by_seed[seeds[0]]), _right_of(control[seeds[0]]))
        return f"{100 * gain.value:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}], over pictures"
    gains = [100 * (by_seed[seed]["accuracy"] - control[seed]["accuracy"]) for seed in seeds]
    mean = float(np.mean(gains))
    margin = float(stats.t.ppf(0.975, len(gains) - 1)) * float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
    return f"{mean:+.2f} [{mean - margin:+.2f}, {mean + margin:+.2f}]"


def _right_of(figures: Mapping[str, Any]) -> list[bool]:
    """Which test pictures were answered rightly."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(figures["right"]), dtype=np.uint8))
    return [bool(bit) for bit in bits[: figures["data"]["test_images"]]]


def _slug(run: Run) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in run.name)


def _folder(arguments: argparse.Namespace, run: Run, seed: int) -> Path:
    folder: Path = arguments.work / _name(arguments) / _slug(run) / f"seed-{seed}"
    return folder


def _name(arguments: argparse.Namespace) -> str:
    """The suite; of shorter trainings with their epochs and pictures."""
    is_whole = (arguments.epochs, arguments.images) == (_EPOCHS, _IMAGES)
    suite: str = arguments.suite
    return suite if is_whole else f"{suite}-{arguments.epochs}x{arguments.images}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("published", "strong"))
    parser.add_argument("--part", nargs="*", default=[], help="only these parts of the table")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--work", type=Path, default=Path(".state/image_cooperation"))
    parser.add_argument("--epochs", type=int, default=_EPOCHS)
    parser.add_argument("--images", type=int, default=_IMAGES, help="training pictures, from the first on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report-only", action="store_true", help="train nothing, write the table of what there is")
    return parser.parse_args()


if __name__ == "__main__":
    main()
