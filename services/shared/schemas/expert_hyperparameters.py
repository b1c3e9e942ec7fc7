"""How an expert is trained."""

from typing import Annotated, Literal

from pydantic import Field

from services.shared.errors import InvalidRequest
from services.shared.schemas.job_spec import Spec
from services.shared.vocabulary import JobQueue


class ExpertHyperparameters(Spec):
    """LoRA and its training; the requirements' defaults where they state one."""

    rank: int = Field(default=16, ge=1, le=256)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    layers_to_transform: tuple[Annotated[int, Field(ge=0, lt=1000)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Decoder layers that get LoRA. Default: all; those above the tap for a router that reads states.",
    )
    use_rslora: bool = False
    learning_rate: float = Field(default=2e-4, gt=0.0, le=1.0)
    batch_size: int = Field(default=8, ge=1, le=1024)
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1024)
    num_epochs: float = Field(default=3.0, gt=0.0, le=1000.0)
    max_steps: int | None = Field(default=None, ge=1)
    max_length: int = Field(default=256, ge=8, le=131072)
    weight_decay: float = Field(default=0.01, ge=0.0)
    warmup_ratio: float = Field(default=0.1, ge=0.0, le=1.0)
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        default="no",
        description="The base model and its passes in half precision; the adapter stays in float32. `fp16` needs a "
        "GPU; `bf16` saves memory on a CPU, and time only where the CPU computes in it.",
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none", description="The frozen base model in 8 or 4 bits (QLoRA); needs a GPU and bitsandbytes."
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Keep only each layer's input for the backward pass and compute the rest again: the same weights, "
        "less memory, about a third more time.",
    )
    packing: bool = True
    completion_only_loss: bool = Field(
        default=False, description="Learn completions, and the assistant's turns of chats, but not what they answer."
    )
    chat_turns: Literal["all", "last"] = Field(
        default="all", description="With completion_only_loss: the assistant's turns of a chat that are learned."
    )
    eval_steps: int | None = Field(default=None, ge=1, description="Default: ten evaluations in all.")
    early_stopping_patience: int = Field(
        default=3, ge=0, description="Evaluations without improvement; 0 = never stop early."
    )
    validation_fraction: float = Field(
        default=0.05, gt=0.0, lt=0.5, description="Held out of the training file when no validation file is given."
    )
    seed: int = Field(default=0, ge=0, lt=2**31)

    def refuse_without_gpu(self, queue: JobQueue | None) -> None:
        """Raise InvalidRequest for what workers of the queue surely lack; they say the same when they validate a job
        that names no queue."""
        if queue != JobQueue.CPU:
            return
        for name, value in {"quantization": self.quantization, "mixed_precision": self.mixed_precision}.items():
            if value in {"8bit", "4bit", "fp16"}:
                raise InvalidRequest(
                    f"{name} {value!r} needs a GPU, which workers of the queue 'cpu' have not: submit with queue "
                    "'gpu', or leave it out.",
                    param=f"hyperparameters.{name}",
                )
