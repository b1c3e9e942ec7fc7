"""What a trace is of: our own mixture under a release, or a native model, loaded and with its recorder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from services.shared.config import Settings
from services.shared.errors import InvalidRequest
from services.shared.modeling.base_model import load_base_model
from services.shared.schemas.trace import TraceJobSpec
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import BASE
from services.traces.description import TraceSource
from services.traces.traced_models import model_folder
from services.trainer_worker.base_identity import configured_base
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.released import Released, released
from services.trainer_worker.tracing.mixture_recorder import MixtureRecorder
from services.trainer_worker.tracing.native_recorder import NativeRecorder
from services.trainer_worker.tracing.recording import Recorder
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble


@dataclass(frozen=True)
class Traced:
    """A model ready to be traced; `experts` name those of its one layer, where they have names."""

    source: TraceSource
    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    max_context: int
    recorder: Recorder
    experts: tuple[str, ...]
    about: dict[str, Any]


def release_of(context: JobContext, spec: TraceJobSpec) -> Released | None:
    """Whose mixture is traced; None of a native model. Raises NotFound and JobFailed as `released` does."""
    if spec.model is not None:
        return None
    return released(context, spec.release, configured_base(context.settings))


@contextmanager
def traced(settings: Settings, spec: TraceJobSpec, release: Released | None) -> Iterator[Traced]:
    """Load what the specification names. Raises InvalidRequest for models that cannot be loaded or traced."""
    if release is None:
        assert spec.model is not None
        yield _native(settings, spec.model)
        return
    subject = Subject(load_base_model(settings), release.experts, release.router_dir, release.graph_dir)
    with traced_mixture(subject, settings, name=release.row.id) as mixture:
        yield mixture


@contextmanager
def traced_mixture(subject: Subject, settings: Settings, *, name: str) -> Iterator[Traced]:
    """A release's mixture on its base model, which is bare again afterwards."""
    base = subject.base
    with ExpertEnsemble.load(base, subject.experts) as ensemble:
        yield Traced(
            source=TraceSource.MIXTURE,
            name=name,
            model=base.model,
            tokenizer=base.tokenizer,
            max_context=base.max_context,
            recorder=MixtureRecorder(
                ensemble,
                subject.scorer(),
                max_candidates=min(settings.router_service.max_candidates, settings.expert_service.num_slots),
            ),
            experts=(*ensemble.experts, BASE),
            about={"base_model": Path(base.name).name, "base_fingerprint": base.fingerprint},
        )


def _native(settings: Settings, path: str) -> Traced:
    folder = model_folder(settings.trainer.traced_models, path)
    # No context of the engine's, no quantisation: a checkpoint is traced as its files have it.
    own = settings.model_copy(
        update={
            "base_model": str(folder),
            "quantization": "none",
            "chat_template": None,
            "expert_service": settings.expert_service.model_copy(update={"max_context": None}),
        }
    )
    try:
        base = load_base_model(own)
    except InvalidRequest as error:
        raise InvalidRequest(error.message.replace(str(folder), path), param="model") from error
    return Traced(
        source=TraceSource.NATIVE,
        name=path,
        model=base.model,
        tokenizer=base.tokenizer,
        max_context=base.max_context,
        recorder=NativeRecorder(base.model),
        experts=(),
        about={"model_fingerprint": base.fingerprint, "model_type": base.model.config.model_type},
    )
