"""Expert jobs in OpenAI's words, and back. Pure.

Every job of kind `expert` is a fine-tuning job, however it was submitted: `job-<id>` is `ftjob-<id>`.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from services.router_service.model_names import fine_tuned_model
from services.router_service.schemas.openai_fine_tuning import (
    AUTO,
    CheckpointMetrics,
    FineTuningCheckpoint,
    FineTuningError,
    FineTuningEvent,
    FineTuningJob,
    FineTuningRequest,
    Hyperparameters,
    MethodUsed,
    SupervisedTrainedWith,
    TrainedWith,
)
from services.shared.database.rows import JobEventRow, JobRow
from services.shared.errors import InvalidRequest
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.vocabulary import BASE, JobStatus

_DEFAULTS: Final = ExpertHyperparameters()
_STATUSES: Final = {JobStatus.VALIDATING.value: "validating_files"}
_OPENAI_METRICS: Final = {"loss": "train_loss", "eval_loss": "valid_loss"}


def expert_name(suffix: str | None, *, otherwise: str) -> str:
    """A suffix as an expert's name: lower case, other characters than letters, digits, `_` and `-` become `-`.

    Raises InvalidRequest for one of which nothing is left, and for the base model's own name.
    """
    if suffix is None:
        return otherwise
    name = re.sub(r"[^a-z0-9_-]+", "-", suffix.lower()).strip("-_")
    if not name or name == BASE:
        raise InvalidRequest(
            f"The suffix {suffix!r} makes no name for an expert: give one with letters or digits that is not {BASE!r}.",
            param="suffix",
        )
    return name


def expert_job(body: FineTuningRequest, *, name: str) -> ExpertJobSpec:
    """The job that a request asks for."""
    return ExpertJobSpec(
        name=name,
        domain=body.routing.domain,
        training_file=body.training_file,
        validation_file=body.validation_file,
        hyperparameters=_hyperparameters(body.wanted_hyperparameters(), seed=body.seed),
        add_to_release=body.routing.add_to_release or body.routing.activate,
        activate=body.routing.activate,
        keep_checkpoints=True,
        metadata=body.metadata,
    )


def shown_job(row: JobRow, *, base: str) -> FineTuningJob:
    """The row as OpenAI's API tells it."""
    spec = ExpertJobSpec.model_validate(row.spec)
    trained_with = _trained_with(spec.hyperparameters)
    is_running = row.status == JobStatus.RUNNING
    return FineTuningJob.model_validate(
        {
            "id": openai_id(row.id),
            "created_at": _seconds(row.created_at),
            "finished_at": _seconds(row.finished_at),
            "estimated_finish": _estimated_finish(row.seconds_left) if is_running else None,
            "model": base,
            "fine_tuned_model": fine_tuned_model(base, spec.name, row.id) if row.result else None,
            "status": _STATUSES.get(row.status, row.status),
            "hyperparameters": trained_with,
            "method": MethodUsed(supervised=SupervisedTrainedWith(hyperparameters=trained_with)),
            "training_file": spec.training_file,
            "validation_file": spec.validation_file,
            "trained_tokens": _trained_tokens(row.result, spec.hyperparameters) if row.result else None,
            "seed": spec.hyperparameters.seed,
            "error": _error(row.error) if row.error else None,
            "metadata": dict(spec.metadata),
        }
    )


def shown_event(row: JobEventRow) -> FineTuningEvent:
    """An event, its figures under OpenAI's names."""
    return FineTuningEvent.model_validate(
        {
            "id": f"ftevent-{row.id}",
            "created_at": _seconds(row.at),
            "level": row.level,
            "type": "metrics" if row.type == "metrics" else "message",
            "message": row.message,
            "data": {_OPENAI_METRICS.get(name, name): value for name, value in row.data.items()},
        }
    )


def shown_checkpoints(row: JobRow, *, base: str) -> list[FineTuningCheckpoint]:
    """The checkpoints that a job has published by now, best and last among them; the last first."""
    checkpoints = row.checkpoints or ()
    name = row.spec["name"]
    return [
        FineTuningCheckpoint(
            id=f"ftckpt_{row.id.removeprefix('job-')}_{kept['step']}",
            created_at=kept["created_at"],
            fine_tuned_model_checkpoint=fine_tuned_model(base, name, row.id, step=kept["step"]),
            fine_tuning_job_id=openai_id(row.id),
            step_number=kept["step"],
            metrics=CheckpointMetrics(step=kept["step"], train_loss=kept["loss"], valid_loss=kept["eval_loss"]),
        )
        for kept in sorted(checkpoints, key=lambda kept: -int(kept["step"]))
    ]


def openai_id(job_id: str) -> str:
    """`ftjob-…` for `job-…`."""
    return f"ft{job_id}"


def own_id(fine_tuning_job_id: str) -> str:
    """`job-…` for `ftjob-…`."""
    return fine_tuning_job_id.removeprefix("ft")


def _hyperparameters(asked: Hyperparameters, *, seed: int) -> ExpertHyperparameters:
    given: dict[str, Any] = {}
    if asked.n_epochs != AUTO:
        given["num_epochs"] = asked.n_epochs
    if asked.batch_size != AUTO:
        given["batch_size"] = asked.batch_size
    if asked.learning_rate_multiplier != AUTO:
        given["learning_rate"] = _DEFAULTS.learning_rate * asked.learning_rate_multiplier
    # As OpenAI does it: what was asked is not learned, what was answered is.
    return ExpertHyperparameters(seed=seed, completion_only_loss=True, **given)


def _trained_with(used: ExpertHyperparameters) -> TrainedWith:
    epochs = used.num_epochs
    return TrainedWith(
        n_epochs=int(epochs) if epochs.is_integer() else epochs,
        batch_size=used.batch_size,
        learning_rate_multiplier=round(used.learning_rate / _DEFAULTS.learning_rate, 9),
    )


def _trained_tokens(result: Mapping[str, Any], used: ExpertHyperparameters) -> int | None:
    """Tokens learned over all epochs; not known of a training that ended before them."""
    metrics = result.get("metrics", {})
    if "num_train_tokens" not in metrics or metrics.get("stopped_early") or used.max_steps is not None:
        return None
    num_train_tokens: int = metrics["num_train_tokens"]
    return round(num_train_tokens * used.num_epochs)


def _error(error: Mapping[str, Any]) -> FineTuningError:
    return FineTuningError(code=error["code"], message=error["message"], param=error.get("param"))


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def _estimated_finish(seconds_left: float | None) -> int | None:
    return None if seconds_left is None else _seconds(datetime.now(UTC) + timedelta(seconds=seconds_left))
