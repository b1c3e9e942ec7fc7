"""Jobs of kind `evaluation`: what a release is worth on held-out text, as a report and as losses on the release."""

from typing import Any

from sqlalchemy.orm import Session

from services.shared.errors import InvalidRequest
from services.shared.modeling.base_model import load_base_model
from services.shared.modeling.trunk_evidence import DiscriminantRows
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
from services.trainer_worker.evaluation.study import Study
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish
from services.trainer_worker.released import Released, released
from services.trainer_worker.training_files import examples_of
from services.trainer_worker.trunk_rows import trunk_rows


def run_evaluation_job(context: JobContext) -> Publish:
    """Read the text under everything that is compared; what is returned writes the losses on the release."""
    spec = EvaluationJobSpec.model_validate(context.spec)
    context.enter("reading")
    release = released(context, spec.release, configured_base(context.settings))
    text = _held_out(context, spec, release)
    context.enter("loading the base model")
    subject = Subject(load_base_model(context.settings), release.experts, release.router_dir, release.graph_dir)
    study = Study(
        subject,
        text,
        spec,
        fresh_model=lambda: load_base_model(context.settings).model,
        training=_training(context, spec, text),
        trunk_rows=_trunk_rows(context, spec, release, subject),
    )
    measured = evaluate(study, context.run_control())
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
    columns = columns_of(tuple(spec.held_out), release.names_and_domains)
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    streams = {domain: _tokenised(context, file_id, tokenizer) for domain, file_id in spec.held_out.items()}
    unknown = _tokenised(context, spec.unknown_file, tokenizer) if spec.unknown_file is not None else None
    return in_order(columns, streams, unknown)


def _training(context: JobContext, spec: EvaluationJobSpec, text: HeldOutText) -> dict[str, list[Example]]:
    """What peers are trained on, in the order of the gate's columns."""
    if not spec.trained_peers:
        return {}
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    return {domain: examples_of(context, spec.training_files[domain], tokenizer) for domain in text.domains}


def _trunk_rows(
    context: JobContext, spec: EvaluationJobSpec, release: Released, subject: Subject
) -> dict[int, DiscriminantRows]:
    """At the layers that are asked for, or else at the router's own, if it has one."""
    own = subject.scorer().bayes
    if not spec.tap_layers:
        return {own.rows.tap_layer: own.rows} if own is not None and own.rows is not None else {}
    if own is None:
        raise InvalidRequest(
            f"{release.row.id} has a learned router, which reads no evidence of its experts: leave tap_layers out.",
            param="tap_layers",
        )
    columns = columns_of(tuple(spec.training_files), release.names_and_domains, field="training_files")
    files = {release.experts[column][0]: spec.training_files[domain] for domain, column in columns.items()}
    return trunk_rows(context, release, subject.base, spec.tap_layers, files)


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
