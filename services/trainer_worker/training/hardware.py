"""What a training needs of the machine: told by name before anything is loaded."""

from importlib.util import find_spec

import torch

from services.shared.errors import InvalidRequest, JobFailed
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters


def refuse_what_is_missing(hyperparameters: ExpertHyperparameters) -> None:
    """Raise InvalidRequest naming the first hyperparameter that this machine cannot serve."""
    has_gpu = torch.cuda.is_available()
    if hyperparameters.mixed_precision == "fp16" and not has_gpu:
        raise InvalidRequest(
            "mixed_precision 'fp16' needs a GPU, and this worker has none: use 'bf16' or 'no'.",
            param="hyperparameters.mixed_precision",
        )
    if hyperparameters.quantization == "none":
        return
    missing = [] if has_gpu else ["a GPU"]
    if find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes")
    if missing:
        raise InvalidRequest(
            f"quantization {hyperparameters.quantization!r} needs a GPU and bitsandbytes, and this worker lacks "
            f"{' and '.join(missing)}: submit with queue 'gpu' where a worker has them, or use 'none'.",
            param="hyperparameters.quantization",
        )


def refuse_too_many_processes(num_processes: int) -> None:
    """Raise JobFailed where there are GPUs, but not one for each of so many processes."""
    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < num_processes:
        raise JobFailed(
            f"The setting trainer.num_processes asks for {num_processes} processes, one a GPU, and this worker sees "
            f"{num_gpus}: set it to at most {num_gpus}, then submit the job again.",
            code="too_few_gpus",
        )
