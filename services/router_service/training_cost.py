"""How long a training may take and how much memory, from the base model's shape and either a measured rate or a stated
assumption. Pure arithmetic, no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.router_service.schemas.dry_run import Estimate
from services.shared.tokenizer import model_file
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
class BaseShape:
    """What the cost of a base model depends on."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int
    key_value_share: float
    vocab_size: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "BaseShape":
        """From a Hugging Face configuration in any of the usual spellings."""
        fields = {**config, **(config.get("text_config") or {})}

        def first(*names: str, default: int) -> int:
            return next((int(fields[name]) for name in names if fields.get(name)), default)

        hidden_size = first("hidden_size", "n_embd", "d_model", default=768)
        num_heads = first("num_attention_heads", "n_head", default=max(hidden_size // 64, 1))
        return cls(
            hidden_size=hidden_size,
            num_layers=first("num_hidden_layers", "n_layer", default=12),
            intermediate_size=first("intermediate_size", "n_inner", default=4 * hidden_size),
            num_heads=num_heads,
            key_value_share=first("num_key_value_heads", default=num_heads) / num_heads,
            vocab_size=first("vocab_size", default=32_000),
        )

    @classmethod
    def of_model(cls, base_model: str) -> "BaseShape":
        """From the `config.json` of a folder or hub id. Raises InvalidRequest when there is none."""
        return cls.of_config(json.loads(model_file(base_model, "config.json").read_text(encoding="utf-8")))

    @property
    def num_layer_parameters(self) -> int:
        """Of all decoder layers: attention and a gated MLP."""
        attention = 2 * self.hidden_size**2 * (1 + self.key_value_share)
        return round(self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size))

    @property
    def num_parameters(self) -> int:
        """All of it, input and output embeddings shared."""
        return self.num_layer_parameters + self.vocab_size * self.hidden_size

    def num_lora_parameters(self, rank: int) -> int:
        """Of an adapter on every linear layer."""
        features = 4 * self.hidden_size + 2 * self.key_value_share * self.hidden_size
        features += 3 * (self.hidden_size + self.intermediate_size)
        return round(rank * self.num_layers * features)

    def activation_bytes(self, *, batch_size: int, length: int, bytes_per_value: int) -> int:
        """What a step keeps for the backward pass, logits included."""
        per_layer = 12 * self.hidden_size + 6 * self.intermediate_size + 2 * self.num_heads * length
        logits = 3 * self.vocab_size * 4
        return batch_size * length * (self.num_layers * per_layer * bytes_per_value + logits)


@dataclass(frozen=True)
class Work:
    """What a training does: `num_tokens` in `num_steps`, a step reading `batch_size` rows of `length` at once."""

    num_tokens: int
    num_steps: int
    batch_size: int
    length: int
    rank: int
    half_precision: bool
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
        + shape.num_parameters * bytes_per_value
        + shape.num_lora_parameters(work.rank) * _ADAM_BYTES
        + shape.activation_bytes(batch_size=work.batch_size, length=work.length, bytes_per_value=bytes_per_value)
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
        tokens_per_s=round(work.num_tokens / training_s, 1),
        basis="assumed",
        explanation=f"No job like it has succeeded yet: reckoned with {flops:.0e} useful floating point operations per "
        f"second, {_FLOPS_PER_PARAMETER} per token and parameter, and {_STARTUP_S:.0f} s to start.",
    )
