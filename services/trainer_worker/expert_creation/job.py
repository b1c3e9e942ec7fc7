"""Jobs of kind `expert_creation`: from data to an expert that is released if it helps and harms nobody.

One job, so that one worker suffices. Its steps are data, approval (if asked for), training, gate row, evaluation,
remeasuring (of a gap) and release; each leaves its outcome in the job's folder and is not done again after an
interruption. Training, evidence and release are those of an expert job.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from services.shared.gaps import close_gap
from services.shared.job_events import add_event
from services.shared.registry import register_expert
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.shared.schemas.sequences import AdapterReport
from services.trainer_worker.base_identity import configured_base
from services.trainer_worker.expert_creation.approval import await_approval
from services.trainer_worker.expert_creation.creation import Creation, Figures
from services.trainer_worker.expert_creation.steps import Steps, done
from services.trainer_worker.expert_creation.wanted import Wanted, wanted
from services.trainer_worker.expert_making import refuse_what_cannot_join
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish
from services.trainer_worker.releases import BaseIdentity, Made, join_release, overtaken


@dataclass(frozen=True)
class _Made:
    """What the steps before the release have come to."""

    data: Figures
    training: Figures
    row: Figures
    judged: Figures
    remeasured: Figures | None


def run_expert_creation_job(context: JobContext) -> Publish:
    """Do all steps but the last; what is returned registers the expert, makes the release and closes the gap, or says
    why not."""
    spec = ExpertCreationJobSpec.model_validate(context.spec)
    base = configured_base(context.settings)
    wish = wanted(context, spec)
    refuse_what_cannot_join(context, wish.name, base)
    creation, steps = Creation(context, spec, wish, base), Steps(context)
    made = _make(context, spec, creation, steps)
    creation.make_first_router()
    context.enter("publishing")
    about = {
        "expert": wish.name,
        "domain": wish.domain,
        "digest": made.row["digest"],
        "data": made.data,
        "evaluation": made.judged["figures"],
        **({"gap": {"id": spec.gap, "closed": False, "remeasured": made.remeasured}} if spec.gap is not None else {}),
    }
    about |= {"artifacts": {"expert": made.row["digest"], **creation.publish_reports(about)}}

    def publish(session: Session) -> dict[str, Any]:
        if made.judged["reasons"]:
            told = _refused(session, context, made)
        else:
            told = _released(session, context, creation, made, spec, wish, base)
        if told["released"] and spec.gap is not None:
            close_gap(session, spec.gap, job_id=context.job_id, release=told["release"])
            told["gap"] = {**about["gap"], "closed": True}
        if told["released"]:
            add_event(session, context.job_id, _in_words(about | told))
        return about | told | {"steps": [*steps.told, done("release", told)]}

    return publish


def _make(context: JobContext, spec: ExpertCreationJobSpec, creation: Creation, steps: Steps) -> _Made:
    data = steps.run("data", creation.prepare)
    if spec.approval:
        steps.run("approval", lambda: await_approval(context, data))
    training = steps.run("training", creation.train)
    row = steps.run("gate_row", lambda: creation.make_row(training["rank"]), holds=creation.has_row)
    judged = steps.run("evaluation", lambda: creation.evaluate(row["digest"]), holds=creation.is_of_current)
    remeasured = None
    if spec.gap is not None and not judged["reasons"]:
        remeasured = steps.run(
            "remeasuring",
            lambda: creation.remeasure(row["digest"], judged),
            holds=lambda figures: bool(figures["beside"] == judged["release"]),
        )
    return _Made(data, training, row, judged, remeasured)


def _in_words(result: Figures) -> str:
    """What the job has come to, for who has watched it."""
    gain, accuracy = result["evaluation"]["gain"], result["evaluation"]["accuracy"]
    words = [
        f"{result['expert']}, version {result['version']}, is released in {result['release']}",
        f"held-out examples cost {gain['value']:.2f} nats a token less [{gain['low']:.2f}, {gain['high']:.2f}]",
    ]
    if accuracy is not None:
        words.append(f"{accuracy['after']['value']:.0%} are answered exactly, {accuracy['before']['value']:.0%} before")
    if "gap" in result:
        words.append(f"the gap {result['gap']['id']} is closed")
    return "; ".join(words) + "."


def _refused(session: Session, context: JobContext, made: _Made) -> dict[str, Any]:
    """Nothing is registered: a later job that takes the newest version of an expert must not find this one."""
    because = "; ".join(made.judged["reasons"])
    add_event(session, context.job_id, f"The expert is not released: {because}.", level="warn")
    return {"released": False, "because": because}


def _released(  # noqa: PLR0913, PLR0917
    session: Session,
    context: JobContext,
    creation: Creation,
    made: _Made,
    spec: ExpertCreationJobSpec,
    wish: Wanted,
    base: BaseIdentity,
) -> dict[str, Any]:
    """As an expert job does it, with the gate's last word on whether the release becomes active; it does not beside
    experts that the newcomer was not compared with."""
    is_compared = creation.is_beside_active(session, made.judged)
    version = register_expert(
        session,
        name=wish.name,
        domain=wish.domain,
        description=spec.description,
        digest=made.row["digest"],
        report=AdapterReport.model_validate(made.row["report"]),
        has_evidence=True,
        source="trained",
        job_id=context.job_id,
        metrics=made.training["metrics"] | {"base_model": base.name},
        must_be_new=spec.name is None,  # nobody meant an expert that has taken the gap's proposal meanwhile
    )
    release: Made = join_release(
        session,
        version,
        base=base,
        default_router=lambda: creation.maker.default_router,
        activation=creation.activation(made.judged) if is_compared else None,
        note=f"{wish.name} version {version.version} by {context.job_id}",
    )
    if spec.activate and not is_compared:
        release = overtaken(release.release, made.judged["release"] or "the base model alone")
    told = {"version": version.version, "released": release.activated, **release.told(session, context.job_id)}
    if not release.activated:
        told["because"] = release.refusal or (
            f"activate is false: POST /releases/{release.release.id}/activate makes it active."
        )
    return told
