"""The specification of an image experiment: experts that cooperate through a learned graph, on small pictures."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from services.shared.errors import InvalidRequest
from services.shared.schemas.job_spec import FileId, JobSpecBase, Spec
from services.shared.vocabulary import JobKind

_HubPart = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]

ImageSetting = Literal["published", "strong"]
"""`published`: flat MLP experts, an untrained gate and the published aggregation. `strong`: convolutional experts, a
trained gate, and a graph that recruits."""

GraphVariant = Literal["learned", "none", "frozen", "scalar"]
"""The learned graph and its controls: no graph, a random one that stays as it is, one learned number for all edges."""


class DigitsImages(Spec):
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels: nothing to upload, seconds to train."""

    num_train: ClassVar[int] = 1437
    """The others are tested on."""

    source: Literal["digits"] = "digits"


class UploadedImages(Spec):
    """Uploaded files: CIFAR's Python pickles (numpy arrays and plain values only), its binary batches, or Parquet."""

    source: Literal["files"]
    train: tuple[FileId, ...] = Field(min_length=1, max_length=64)
    test: tuple[FileId, ...] = Field(min_length=1, max_length=64)


class HubImages(Spec):
    """A data set of the hub by name, such as `uoft-cs/cifar10`; needs one image column and one of class labels."""

    source: Literal["hub"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")
    config: _HubPart | None = None
    train_split: _HubPart = "train"
    test_split: _HubPart = "test"


ImageData = Annotated[DigitsImages | UploadedImages | HubImages, Field(discriminator="source")]


class ImageHyperparameters(Spec):
    """Training. What is not given has the setting's own value, shown as published / strong."""

    batch_size: int | None = Field(default=None, ge=1, le=8192, description="64 / 125.")
    learning_rate: float | None = Field(default=None, gt=0.0, le=1.0, description="1e-3 / 3e-3 at its peak.")
    graph_learning_rate: float | None = Field(default=None, gt=0.0, le=1.0, description="1e-4 / 1e-2.")
    weight_decay: float | None = Field(default=None, ge=0.0, le=1.0, description="0.01 / 0.05.")
    warmup_epochs: int | None = Field(
        default=None, ge=0, le=1000, description="Epochs before the graph speaks: 2 (with one expert) / 2."
    )
    diversity_weight: float | None = Field(
        default=None, ge=0.0, description="Weight of the team's mean pairwise cosine: 0.05 / 0."
    )
    budget_weight: float | None = Field(
        default=None, ge=0.0, description="Weight of the normalised entropy of the team's weights: 0.01 / 0."
    )
    balance_weight: float | None = Field(
        default=None, ge=0.0, description="Weight of the load-balancing loss of a trained gate: 0 / 0.05."
    )
    l1_step: Literal["subgradient", "proximal"] | None = Field(
        default=None, description="How the L1 penalty acts: subgradient / proximal, which makes exact zeros."
    )


class ImageCooperationJobSpec(JobSpecBase):
    """Train image experts with a cooperation graph and report what it does; defaults as the requirements state them."""

    files_are_text: ClassVar[bool] = False
    uses_base_model: ClassVar[bool] = False

    kind: Literal[JobKind.IMAGE_COOPERATION] = JobKind.IMAGE_COOPERATION
    setting: ImageSetting = "published"
    data: ImageData = DigitsImages()
    graph: GraphVariant = "learned"
    num_experts: int = Field(default=8, ge=2, le=64)
    top_k: int = Field(default=2, ge=1, le=64)
    l1: float = Field(default=0.1, ge=0.0, le=100.0, description="Weight of the L1 penalty on the graph's edges.")
    num_epochs: int = Field(default=10, ge=1, le=1000)
    hyperparameters: ImageHyperparameters = ImageHyperparameters()
    num_routing_examples: int = Field(default=64, ge=1, le=10_000)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @property
    def batch_size(self) -> int:
        """Pictures per step: what is given, or the setting's own."""
        return self.hyperparameters.batch_size or (64 if self.setting == "published" else 125)

    def num_steps(self, num_pictures: int) -> int:
        """Of the whole training, on so many pictures."""
        return self.num_epochs * math.ceil(num_pictures / self.batch_size)

    def named_files(self) -> dict[str, str]:
        """Uploaded pictures, if they are what is trained on."""
        if not isinstance(self.data, UploadedImages):
            return {}
        parts = {"train": self.data.train, "test": self.data.test}
        return {f"data.{part}.{index}": file for part, files in parts.items() for index, file in enumerate(files)}

    def check(self) -> None:
        """A team of no more experts than there are."""
        if self.top_k > self.num_experts:
            raise InvalidRequest(f"top_k {self.top_k} is more than num_experts {self.num_experts}.", param="top_k")
