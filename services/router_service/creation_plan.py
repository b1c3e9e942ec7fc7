"""What a job of kind `expert_creation` will do, for its dry run: in words, and in steps."""

from collections.abc import Mapping

from services.router_service.dataset_report import Survey
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.shared.training_plan import StepPlan, block_sizes


def creation_plan(spec: ExpertCreationJobSpec) -> str:
    """Its steps, one after the other."""
    if spec.teacher is not None:
        source = f"Asks the teacher {spec.teacher} for {spec.num_examples or '100 to 500'} examples"
    else:
        source = f"Takes the examples of {len(spec.training_files)} files"
    ranks = ", ".join(str(one.rank) for one in spec.trainings)
    approval = "waits for approval; " if spec.approval else ""
    release = "activates a release with it" if spec.activate else "makes a release with it"
    return (
        f"{source}; drops those that repeat each other, are read in evaluations or stand out; holds "
        f"{spec.held_out_fraction:.0%} of them out; {approval}trains at rank {ranks}; {release} only if its gain on "
        "what was held out is surely above zero and no other domain loses more than is tolerated."
    )


def creation_steps(
    spec: ExpertCreationJobSpec, surveys: Mapping[str, Survey], *, max_context: int | None
) -> int | None:
    """Of all trainings together, at most: as if no example were dropped. None where a teacher has yet to write them."""
    numbers = spec.hyperparameters
    sizes = [size for one in surveys.values() for size in one.sizes_N.tolist()]
    num_trained = round(len(sizes) * (1 - spec.held_out_fraction) * (1 - numbers.validation_fraction))
    blocks = block_sizes(
        sizes[:num_trained],
        max_length=min(numbers.max_length, max_context or numbers.max_length),
        packing=numbers.packing,
        seed=numbers.seed,
    )
    steps = StepPlan.of(numbers, len(blocks)).num_steps if blocks else numbers.max_steps
    return steps * len(spec.trainings) if steps is not None else None
