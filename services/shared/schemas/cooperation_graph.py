"""The specification of a cooperation graph's training."""

from typing import Annotated, Literal

from pydantic import Field

from services.shared.errors import InvalidRequest
from services.shared.schemas.job_spec import ExpertName, FileId, JobSpecBase, ReleaseId, Spec, refuse_repeated
from services.shared.vocabulary import JobKind

JointPart = Literal["router", "experts"]
"""What may be trained together with a graph: the constants of the router's Bayes filter, the experts' weights."""


class GraphHyperparameters(Spec):
    """Training of a graph."""

    num_steps: int = Field(default=60, ge=1, le=100_000)
    num_epochs: int = Field(default=5, ge=1, le=100, description="Heatmaps of the graph, evenly over the steps.")
    learning_rate: float = Field(default=0.02, gt=0.0, le=1.0)
    router_learning_rate: float = Field(default=0.05, gt=0.0, le=1.0, description="Where the router is trained too.")
    expert_learning_rate: float = Field(default=5e-4, gt=0.0, le=1.0, description="Where the experts are trained too.")
    batch_size: int = Field(default=8, ge=1, le=1024)
    max_length: int = Field(default=192, ge=16, le=131_072)
    num_test_documents: int = Field(default=128, ge=8, le=10_000)


class CooperationGraphJobSpec(JobSpecBase):
    """Learn which experts recruit which on text of mixed domains, beside the controls that it has to beat."""

    kind: Literal[JobKind.COOPERATION_GRAPH] = JobKind.COOPERATION_GRAPH
    release: ReleaseId | None = Field(default=None, description="Whose experts and router; default: the active one's.")
    experts: tuple[ExpertName, ...] | None = Field(
        default=None, min_length=2, description="Of the release; default: all of them."
    )
    training_files: dict[ExpertName, FileId] = Field(
        default={}, description="Text per expert; documents are spliced of them that change their domain."
    )
    mixed_files: tuple[FileId, ...] = Field(
        default=(), max_length=64, description="Text that mixes domains by itself; spliced in like an expert's."
    )
    l1: float = Field(
        default=0.1,
        ge=0.0,
        le=100.0,
        description="Weight of the L1 penalty, taken by proximal steps: an edge whose average gradient is less than "
        "this times its root mean square is exactly zero.",
    )
    l1_sweep: tuple[Annotated[float, Field(ge=0.0, le=100.0)], ...] = Field(default=(0.0, 0.03, 0.3), max_length=16)
    top_ks: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        default=(1, 2, 3),
        max_length=8,
        description="Experts per token at which graphs are learned and held against none.",
    )
    joint: tuple[JointPart, ...] = Field(
        default=(),
        max_length=2,
        description="Also measured: a graph trained together with these, beside the same training without a graph. "
        "What is published is the graph over frozen experts and router.",
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        default=(0, 1, 2, 3, 4), min_length=1, max_length=20
    )
    controls: bool = Field(default=True, description="Without them nothing is proved and no release is made.")
    hyperparameters: GraphHyperparameters = GraphHyperparameters()
    create_release: bool = Field(
        default=False, description="If the graph beats all its controls; staged, not activated."
    )

    def named_files(self) -> dict[str, str]:
        """Text of the experts, and text that mixes them."""
        named = {f"training_files.{name}": file_id for name, file_id in self.training_files.items()}
        return named | {f"mixed_files.{index}": file_id for index, file_id in enumerate(self.mixed_files)}

    def named_experts(self) -> tuple[str, ...]:
        """Those that the graph is to be over."""
        return self.experts or ()

    def named_release(self) -> str | None:
        """The release, where one is named."""
        return self.release

    def check(self) -> None:
        """Some text; and where a release is wanted, controls, and all the experts that it will serve."""
        if not self.training_files and not self.mixed_files:
            raise InvalidRequest("Name text under training_files or mixed_files.", param="training_files")
        if self.create_release and not self.controls:
            raise InvalidRequest(
                "create_release needs controls: a graph is released only if it beats them.", param="controls"
            )
        if self.create_release and self.experts is not None:
            raise InvalidRequest("create_release needs all experts of the release: leave experts out.", param="experts")
        numbers = self.hyperparameters
        if numbers.batch_size > numbers.num_test_documents:
            raise InvalidRequest(
                f"batch_size {numbers.batch_size} is more than num_test_documents {numbers.num_test_documents}: graphs "
                "are judged on whole batches.",
                param="hyperparameters.batch_size",
            )
        refuse_repeated(seeds=self.seeds, l1_sweep=self.l1_sweep, top_ks=self.top_ks, joint=self.joint)
