"""How long a training may take and how much memory, from the base model's shape and either a measured rate or a stated
assumption. Pure arithmetic, no torch."""

from dataclasses import dataclass
from typing import Final

from services.router_service.schemas.dry_run import Estimate
from services.shared.base_shape import BaseShape
from services.shared.vocabulary import JobQueue

_ASSUMED_FLOPS: Final = {JobQueue.CPU.value: 2e10, JobQueue.GPU.value: 2e13}
"""Useful floating point operations per second: two cores of a small server; a data-centre GPU in half precision."""

_FLOPS_PER_PARAMETER: Final = 4
"""Per token: 2 forward, 2 backward to the inputs. A frozen weight has no gradient of its own."""

_STARTUP_S: Final = 10.0
_STEP_OVERHEAD_S: Final = 0.01
_PROCESS_BYTES: Final = 600 * 1024**2
_ADAM_BYTES: Final = 16
"""Per trained parameter in float32: weight, gradient and two moments."""


@dataclass(frozen=True)
class Work:
    """What a training does: `num_tokens` in `num_steps`, a step reading `batch_size` rows of `length` at once."""

    num_tokens: int
    num_steps: int
    batch_size: int
    length: int
    rank: int
    half_precision: bool
    base_bytes_per_weight: float = 4.0
    checkpointed: bool = False
    num_passes: float = 1.0
    """Forward and backward passes per token, in units of the base model's own."""


@dataclass(frozen=True)
class MeasuredRate:
    """Tokens per second of an earlier job of the kind on the same base model and queue."""

    job_id: str
    tokens_per_s: float


def estimate(shape: BaseShape, work: Work, *, queue: str, measured: MeasuredRate | None) -> Estimate:
    """Seconds from start to end, and the peak of memory."""
    bytes_per_value = 2 if work.half_precision else 4
    peak = (
        _PROCESS_BYTES
        + round(shape.num_parameters * work.base_bytes_per_weight)
        + shape.num_lora_parameters(work.rank) * _ADAM_BYTES
        + shape.activation_bytes(
            batch_size=work.batch_size,
            length=work.length,
            bytes_per_value=bytes_per_value,
            checkpointed=work.checkpointed,
        )
    )
    if measured is not None:
        seconds = _STARTUP_S + work.num_tokens / measured.tokens_per_s
        explanation = f"{measured.job_id} trained {measured.tokens_per_s:,.0f} tokens per second on this base model."
        return Estimate(
            seconds=round(seconds, 1),
            peak_memory_bytes=peak,
            tokens_per_s=round(measured.tokens_per_s, 1),
            basis="measured",
            explanation=explanation,
        )
    flops = _ASSUMED_FLOPS.get(queue, _ASSUMED_FLOPS[JobQueue.CPU.value])
    num_flops = _FLOPS_PER_PARAMETER * shape.num_parameters * work.num_passes * work.num_tokens
    training_s = num_flops / flops + work.num_steps * _STEP_OVERHEAD_S
    return Estimate(
        seconds=round(_STARTUP_S + training_s, 1),
        peak_memory_bytes=peak,
        tokens_per_s=round(work.num_tokens / training_s, 1) if work.num_tokens else None,
        basis="assumed",
        explanation=f"No job like it has succeeded yet: reckoned with {flops:.0e} useful floating point operations per "
        f"second, {_FLOPS_PER_PARAMETER} per token and parameter, and {_STARTUP_S:.0f} s to start.",
    )
