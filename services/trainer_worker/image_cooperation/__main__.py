"""The image experiment as a plain command, without a stack; stopped and called again, it goes on where it was.

python -m services.trainer_worker.image_cooperation --out DIR [--data FOLDER] [--setting strong] [--seed 1] ...
"""

import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn

from services.shared.errors import AmoeError
from services.shared.schemas.image_cooperation import ImageCooperationJobSpec
from services.trainer_worker.progress import TrainingProgress, TrainingStopped

_CONSOLE = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def experiment(  # noqa: PLR0913, PLR0917
    out: Annotated[Path, typer.Option(help="Folder of the report, its pictures and the checkpoints.")],
    data: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10 in any layout. Default: digits.")] = None,
    setting: Annotated[str, typer.Option(help="published or strong.")] = "published",
    graph: Annotated[str, typer.Option(help="learned, none, frozen or scalar.")] = "learned",
    top_k: Annotated[int, typer.Option(help="Experts on each picture.")] = 2,
    num_experts: Annotated[int, typer.Option(help="Experts in all.")] = 8,
    l1: Annotated[float, typer.Option(help="Weight of the L1 penalty on the graph's edges.")] = 0.1,
    num_epochs: Annotated[int, typer.Option(help="Passes through the training set.")] = 10,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    hyperparameter: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, as in the job's spec.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: as many as there are cores.")] = 0,
) -> None:
    """Train, measure every epoch, and write the report."""
    fields: dict[str, Any] = {
        "setting": setting,
        "graph": graph,
        "top_k": top_k,
        "num_experts": num_experts,
        "l1": l1,
        "num_epochs": num_epochs,
        "seed": seed,
        "hyperparameters": dict(item.split("=", 1) for item in hyperparameter or ()),
    }
    try:
        spec = ImageCooperationJobSpec.model_validate(fields)
        spec.check()
        accuracy = _run(spec, data, out, threads)
    except ValidationError as error:
        first = error.errors()[0]
        _CONSOLE.print(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}", style="red")
        raise typer.Exit(2) from error
    except AmoeError as error:
        _CONSOLE.print(error.message, style="red")
        raise typer.Exit(1) from error
    except TrainingStopped as error:
        _CONSOLE.print(f"Stopped; the same command goes on from its last step, kept in {out}.")
        raise typer.Exit(130) from error
    _CONSOLE.print(f"accuracy {accuracy:.2%}; the report is {out / 'report.md'}")


def _run(spec: ImageCooperationJobSpec, folder: Path | None, out: Path, threads: int) -> float:
    import torch

    from services.trainer_worker.image_cooperation.artifact import write_artifact
    from services.trainer_worker.image_cooperation.digits import digits_images
    from services.trainer_worker.image_cooperation.image_files import image_folder
    from services.trainer_worker.image_cooperation.recipe import recipe_of
    from services.trainer_worker.image_cooperation.training import train_images

    if threads:
        torch.set_num_threads(threads)
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    images = image_folder(folder) if folder else digits_images()
    recipe = recipe_of(spec)
    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, console=_CONSOLE) as bar:
        task = bar.add_task("training", total=None, loss=float("nan"))

        def show(progress: TrainingProgress) -> None:
            loss = float("nan") if progress.loss is None else progress.loss
            bar.update(task, completed=progress.step, total=progress.total_steps, loss=loss)

        outcome = train_images(
            images,
            recipe,
            folder=out / "checkpoints",
            on_progress=show,
            should_stop=stop.is_set,
            should_keep_state=stop.is_set,
        )
    write_artifact(out, outcome, data=images, recipe=recipe, num_examples=spec.num_routing_examples)
    return outcome.history[-1].accuracy


if __name__ == "__main__":
    typer.run(experiment)
