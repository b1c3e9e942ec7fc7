"""Jobs of kind `calibration`: what a release knows of its own ignorance, as a part of a release and as a report."""

from typing import Any

from sqlalchemy.orm import Session

from services.shared.errors import InvalidRequest
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.wiring import decoder_stack
from services.shared.schemas.calibration import CalibrationJobSpec
from services.trainer_worker.base_identity import configured_base
from services.trainer_worker.calibration.calibrating import Calibrated, Calibrating
from services.trainer_worker.calibration.drawing import draw_prompts
from services.trainer_worker.calibration.losses import read_losses
from services.trainer_worker.calibration.report import headline, write_report
from services.trainer_worker.evaluation.held_out import columns_of
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish
from services.trainer_worker.released import released
from services.trainer_worker.releases import release_with_calibration
from services.trainer_worker.training_files import examples_of


def run_calibration_job(context: JobContext) -> Publish:
    """Measure and fit; what is returned makes the release, if one is wanted."""
    spec = CalibrationJobSpec.model_validate(context.spec)
    context.enter("reading")
    identity = configured_base(context.settings)
    release = released(context, spec.release, identity)
    columns = columns_of(tuple(spec.held_out), release.names_and_domains)
    context.enter("loading the base model")
    subject = Subject(load_base_model(context.settings), release.experts, release.router_dir, release.graph_dir)
    _check_layer(subject.base, spec)
    examples = {
        column: examples_of(context, spec.held_out[domain], subject.base.tokenizer)
        for domain, column in columns.items()
    }
    prompts = draw_prompts(examples, subject.base, spec, num_experts=len(subject.experts))
    losses = read_losses(subject, prompts, context.run_control())
    context.enter("calibrating")
    calibrated = Calibrating(subject, prompts, losses, spec).run()
    figures = {"release": release.row.id, "base_model": release.row.base_model} | calibrated.figures
    artifacts = _published(context, calibrated, figures)
    context.note(headline(figures), data={"ece": figures["ece"], "false_flags": figures["false_flags"]})

    def publish(session: Session) -> dict[str, Any]:
        result: dict[str, Any] = {
            "calibrated": release.row.id,
            "calibration": artifacts["calibration"],
            "artifacts": artifacts,
            "figures": figures,
            "release": None,
        }
        if not spec.create_release:
            return result
        made = release_with_calibration(
            session,
            release.row,
            artifacts["calibration"],
            base=identity,
            activate=spec.activate,
            note=f"calibrated by {context.job_id}",
        )
        return result | made.told(session, context.job_id)

    return publish


def _check_layer(base: LoadedBase, spec: CalibrationJobSpec) -> None:
    num_layers = len(decoder_stack(base.model)[1])
    if spec.states_layer >= num_layers:
        raise InvalidRequest(f"states_layer must lie in 0..{num_layers - 1} for this base model.", param="states_layer")


def _published(context: JobContext, calibrated: Calibrated, figures: dict[str, Any]) -> dict[str, str]:
    with context.storage.stage() as staged:
        write_report(figures, staged / "report")
        folder = staged / "calibration"
        folder.mkdir()
        calibrated.calibration.save(folder)
        return {
            "calibration": context.storage.publish(folder),
            "report": context.storage.publish(staged / "report"),
        }
