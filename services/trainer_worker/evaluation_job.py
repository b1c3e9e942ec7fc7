"""Jobs of kind `evaluation`: what a release is worth on held-out text, as a report and as losses on the release."""

from typing import Any

from sqlalchemy.orm import Session

from services.shared.modeling.base_model import load_base_model
from services.shared.registry import set_evaluation
from services.shared.release_evaluation import Evaluation
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.tokenizer import Tokenizer, load_tokenizer
from services.shared.training_text import Example
from services.trainer_worker.base_identity import configured_base
from services.trainer_worker.evaluation.artifact import write_artifact
from services.trainer_worker.evaluation.evaluator import evaluate
from services.trainer_worker.evaluation.held_out import HeldOutText, columns_of, documents_name, in_order
from services.trainer_worker.evaluation.release_figures import Figures
from services.trainer_worker.evaluation.report import headline
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish
from services.trainer_worker.released import Released, released
from services.trainer_worker.training_files import examples_of


def run_evaluation_job(context: JobContext) -> Publish:
    """Read the text under everything that is compared; what is returned writes the losses on the release."""
    spec = EvaluationJobSpec.model_validate(context.spec)
    context.enter("reading")
    release = released(context, spec.release, configured_base(context.settings))
    text = _held_out(context, spec, release)
    context.enter("loading the base model")
    subject = Subject(load_base_model(context.settings), release.experts, release.router_dir, release.graph_dir)
    measured = evaluate(
        subject,
        text,
        spec,
        training=_training(context, spec, text),
        fresh_model=lambda: load_base_model(context.settings).model,
        folder=context.folder.work,
        on_progress=context.report,
        should_stop=context.should_stop,
    )
    figures = _about(release) | measured
    context.enter("reporting")
    digest = _published(context, figures)
    evaluation = Evaluation(
        losses=figures["losses"], data=documents_name(figures["documents"], list(figures["domains"]), spec)
    )
    context.note(headline(figures), data=figures["over_seeds"])

    def publish(session: Session) -> dict[str, Any]:
        set_evaluation(session, release.row.number, evaluation)
        return {
            "release": release.row.id,
            "artifacts": {"report": digest},
            "evaluation": evaluation.model_dump(),
            "figures": figures["over_seeds"],
        }

    return publish


def _held_out(context: JobContext, spec: EvaluationJobSpec, release: Released) -> HeldOutText:
    experts = [(column.version.expert_name, column.version.expert.domain) for column in release.row.experts]
    columns = columns_of(tuple(spec.held_out), experts)
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    streams = {domain: _tokenised(context, file_id, tokenizer) for domain, file_id in spec.held_out.items()}
    unknown = _tokenised(context, spec.unknown_file, tokenizer) if spec.unknown_file is not None else None
    return in_order(columns, streams, unknown)


def _training(context: JobContext, spec: EvaluationJobSpec, text: HeldOutText) -> dict[str, list[Example]]:
    """What peers are trained on, in the order of the gate's columns."""
    if not spec.training_files:
        return {}
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    return {domain: examples_of(context, spec.training_files[domain], tokenizer) for domain in text.domains}


def _tokenised(context: JobContext, file_id: str, tokenizer: Tokenizer) -> list[list[int]]:
    return tokenizer.encode_batch([example.text for example in examples_of(context, file_id, tokenizer)])


def _about(release: Released) -> Figures:
    return {
        "release": release.row.id,
        "base_model": release.row.base_model,
        "experts": [name for name, _ in release.experts],
        "router_kind": release.row.router_kind,
        "graph": release.row.graph_digest,
    }


def _published(context: JobContext, figures: Figures) -> str:
    with context.storage.stage() as staged:
        folder = staged / "report"
        write_artifact(figures, folder)
        return context.storage.publish(folder)
