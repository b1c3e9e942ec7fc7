"""Jobs of kind `expert`: train an adapter, publish it with its evidence and, if asked, let it join the mixture."""

from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from services.shared.registry import register_expert
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.tokenizer import load_tokenizer
from services.shared.training_text import Example
from services.trainer_worker.activation_gate import judge, tolerance_of
from services.trainer_worker.base_identity import configured_base
from services.trainer_worker.checkpoints import trained_checkpoints
from services.trainer_worker.datasets import split_examples
from services.trainer_worker.expert_making import ExpertMaker, refuse_what_cannot_join, training_metrics
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish
from services.trainer_worker.publishing import publish_checkpoint
from services.trainer_worker.releases import Activation, BaseIdentity, current_release, join_release
from services.trainer_worker.training_files import examples_of


def run_expert_job(context: JobContext) -> Publish:
    """Train the expert; what is returned registers its version and makes the release."""
    spec = ExpertJobSpec.model_validate(context.spec)
    context.enter("reading")
    train, validation = _examples(context, spec)
    counts = {"num_training_examples": len(train), "num_validation_examples": len(validation)}
    context.note(f"{len(train):,} examples to train on, {len(validation):,} to validate with.", data=counts)

    context.enter("loading")  # from here on torch is needed, which takes seconds to import
    base = configured_base(context.settings)
    if wants_release(spec):
        refuse_what_cannot_join(context, spec.name, base)
    maker = ExpertMaker(context, base)
    publish_checkpoints = partial(_publish_checkpoints, context, spec, {})
    training = maker.train(
        train, validation, spec.hyperparameters, folder=context.folder.work, on_checkpoint=publish_checkpoints
    )
    context.enter("publishing")
    expert = maker.publish(training, train)
    _make_first_router(context, spec, base, maker)
    metrics = training_metrics(training) | {"base_model": base.name}
    checkpoints = publish_checkpoints()
    activation = _activation(context, spec, base, maker, expert.digest)

    def publish(session: Session) -> dict[str, Any]:
        version = register_expert(
            session,
            name=spec.name,
            domain=spec.domain,
            description=spec.description,
            digest=expert.digest,
            report=expert.report,
            has_evidence=True,
            source="trained",
            job_id=context.job_id,
            metrics=metrics,
        )
        result = {
            "expert": spec.name,
            "version": version.version,
            "digest": expert.digest,
            "metrics": metrics,
            "artifacts": {"expert": expert.digest},
            **({"checkpoints": checkpoints} if spec.keep_checkpoints else {}),
        }
        if not wants_release(spec):
            return result
        made = join_release(
            session,
            version,
            base=base,
            default_router=lambda: maker.default_router,
            activation=activation,
            note=f"{spec.name} version {version.version} by {context.job_id}",
        )
        return result | made.told(session, context.job_id)

    return publish


def _publish_checkpoints(
    context: JobContext, spec: ExpertJobSpec, published: dict[int, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Those that the training has by now, best and last among them, so that they can be asked while it goes on and if
    it fails; `published` are known from before, by step."""
    if not spec.keep_checkpoints:
        return []
    for checkpoint in (kept := trained_checkpoints(context.folder.work / "checkpoints")):
        if checkpoint.step not in published:
            published[checkpoint.step] = publish_checkpoint(context.storage, checkpoint)
    told = [published[checkpoint.step] for checkpoint in kept]
    context.keep_checkpoints(told)
    return told


def wants_release(spec: ExpertJobSpec) -> bool:
    """Activating implies a release."""
    return spec.add_to_release or spec.activate


def _examples(context: JobContext, spec: ExpertJobSpec) -> tuple[list[Example], list[Example]]:
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    examples = examples_of(context, spec.training_file, tokenizer)
    if spec.validation_file is not None:
        return examples, examples_of(context, spec.validation_file, tokenizer)
    hyperparameters = spec.hyperparameters
    return split_examples(examples, fraction=hyperparameters.validation_fraction, seed=hyperparameters.seed)


def _make_first_router(context: JobContext, spec: ExpertJobSpec, base: BaseIdentity, maker: ExpertMaker) -> None:
    """Now if no release is active, because it takes a while."""
    with context.sessions() as session:
        is_needed = wants_release(spec) and current_release(session, base) is None
    if is_needed:
        context.enter("making the router")
        _ = maker.default_router


def _activation(
    context: JobContext, spec: ExpertJobSpec, base: BaseIdentity, maker: ExpertMaker, digest: str
) -> Activation | None:
    """Measured against the active release, if there is one that the newcomer would join."""
    if not spec.activate:
        return None
    with context.sessions() as session:
        current = current_release(session, base)
    judgement = judge(context, maker.candidate(current, spec.name, digest)) if current is not None else None
    return Activation(tolerance_of(context.settings, spec.tolerance), judgement)
