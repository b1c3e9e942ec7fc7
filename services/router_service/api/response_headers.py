"""Response headers of generation, by LoRAX's and TGI's names."""

from services.router_service.dependencies import Resources
from services.router_service.generation import Generation
from services.shared.schemas.sequences import FinishedEvent
from services.shared.vocabulary import model_name


def headers_at_start(generation: Generation, resources: Resources) -> dict[str, str]:
    """What is known when the first token is."""
    record, hosted = generation.record, resources.replicas.base
    base_model = hosted.name if hosted is not None else resources.settings.base_model
    headers = {
        "x-routing-request-id": record.id,
        "x-compute-characters": str(len(record.prompt)),
        "x-prompt-tokens": str(len(record.prompt_ids)),
        "x-model-id": model_name(base_model).encode("ascii", "replace").decode(),
    }
    if hosted is not None:
        headers["x-compute-type"] = "cpu" if hosted.device == "cpu" else "gpu"
    if record.plan.weights:
        headers["x-adapter-id"] = ",".join(record.plan.weights)
    if record.plan.release is not None:
        headers["x-release-id"] = record.plan.release
    return headers


def headers_at_end(generation: Generation, finished: FinishedEvent) -> dict[str, str]:
    """Timings in whole milliseconds, and counts."""
    timings = finished.timings
    total_ms = generation.record.timings["total_ms"]
    inference_ms = timings.prefill_ms + timings.decode_ms
    milliseconds = {
        "x-total-time": total_ms,
        "x-validation-time": max(0.0, total_ms - timings.queue_ms - inference_ms),
        "x-queue-time": timings.queue_ms,
        "x-inference-time": inference_ms,
        "x-time-to-first-token": generation.record.timings.get("first_token_ms", total_ms),
        "x-time-per-token": inference_ms / max(1, finished.num_generated_tokens),
    }
    counts = {
        "x-generated-tokens": finished.num_generated_tokens,
        "x-total-tokens": finished.num_prompt_tokens + finished.num_generated_tokens,
        "x-skipped-tokens": 0,
    }
    rounded = {name: str(round(value)) for name, value in milliseconds.items()}
    return {**rounded, **{name: str(count) for name, count in counts.items()}, "x-compute-time": str(total_ms / 1000)}
