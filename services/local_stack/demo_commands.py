"""`adaptive-moe demo …`: build the demo, and write training files of its domains."""

from pathlib import Path
from typing import Annotated, Literal

import typer

demo_app = typer.Typer(
    no_args_is_help=True, help="Build the demo base model with its experts, and write its training files."
)


@demo_app.command()
def build(
    *,
    out: Annotated[Path | None, typer.Option(help="Folder to build into. Default: demo in the project.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything that is random follows from it.")] = None,
    redo: Annotated[list[str] | None, typer.Option(help="A stage to run again with all after it; repeatable.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A stage to restrict the build to; repeatable.")] = None,
) -> None:
    """Make base model, experts, router, graph and calibration; an interrupted build goes on where it stopped."""
    from services.local_stack.bootstrap import DEMO_FOLDER
    from services.trainer_worker.demo.build import UnknownStage, build_demo
    from services.trainer_worker.demo.plan import DEFAULT_SEED

    try:
        build_demo(out or DEMO_FOLDER, DEFAULT_SEED if seed is None else seed, redo=redo or (), only=only)
    except UnknownStage as error:
        raise typer.BadParameter(str(error)) from error


@demo_app.command()
def data(
    domain: Annotated[str, typer.Argument(help="A domain: `adaptive-moe demo domains` lists them.")],
    *,
    out: Annotated[Path | None, typer.Option(help="The JSONL file to write. Default: DOMAIN.jsonl here.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many items.")] = 1000,
    split: Annotated[
        Literal["train", "validation", "held_out"], typer.Option(help="No item is in two of them.")
    ] = "train",
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bytes.")] = None,
) -> None:
    """Write a domain's items as prompt and completion lines, ready to be uploaded for an expert job."""
    from services.trainer_worker.demo.dataset_file import UnknownDomain, write_dataset
    from services.trainer_worker.demo.plan import DEFAULT_SEED

    file = out or Path(f"{domain}.jsonl")
    try:
        write_dataset(domain, split, count, DEFAULT_SEED if seed is None else seed, file)
    except (UnknownDomain, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"Wrote {count} items of {domain} ({split}) to {file}")


@demo_app.command()
def domains() -> None:
    """List the domains: those with an expert in the demo, and those kept back."""
    from services.trainer_worker.demo.domains import DEMO_DOMAINS, HELD_BACK_DOMAINS

    typer.echo(f"with an expert: {', '.join(DEMO_DOMAINS)}")
    typer.echo(f"kept back:      {', '.join(HELD_BACK_DOMAINS)}")
