"""Jobs of kind `expert`: train an adapter, publish it with its evidence and, if asked, let it join the mixture."""

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from services.shared.errors import JobFailed
from services.shared.modeling.router_artifact import read_router_file
from services.shared.registry import register_expert
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.tokenizer import load_tokenizer
from services.shared.training_text import Example
from services.shared.vocabulary import EvidenceKind, RouterKind
from services.trainer_worker.activation_gate import Candidate, judge, tolerance_of
from services.trainer_worker.base_identity import configured_base
from services.trainer_worker.checkpoints import trained_checkpoints
from services.trainer_worker.datasets import split_examples
from services.trainer_worker.evidence import EvidenceMaker
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish
from services.trainer_worker.publishing import publish_bayes_router, publish_checkpoint, publish_expert
from services.trainer_worker.releases import (
    Activation,
    BaseIdentity,
    Router,
    current_release,
    join_release,
    versions_of,
)
from services.trainer_worker.training_files import examples_of

if TYPE_CHECKING:
    from services.trainer_worker.training.training_folder import ExpertTraining


def run_expert_job(context: JobContext) -> Publish:
    """Train the expert; what is returned registers its version and makes the release."""
    spec = ExpertJobSpec.model_validate(context.spec)
    settings = context.settings
    context.enter("reading")
    train, validation = _examples(context, spec)
    counts = {"num_training_examples": len(train), "num_validation_examples": len(validation)}
    context.note(f"{len(train):,} examples to train on, {len(validation):,} to validate with.", data=counts)

    context.enter("loading")  # from here on torch is needed, which takes seconds to import
    from services.shared.modeling.adapter_files import check_adapter_folder
    from services.shared.modeling.base_model import empty_model

    base = configured_base(settings)
    _refuse_what_cannot_join(context, spec, base)
    tap_layer = _tap_layer(context, base)
    publish_checkpoints = partial(_publish_checkpoints, context, spec, {})
    training = _trainer(context)(
        base_model=settings.base_model,
        train=train,
        validation=validation,
        hyperparameters=_above_tap(spec.hyperparameters, tap_layer, settings.base_model),
        output_dir=context.folder.work,
        on_progress=context.report,
        should_stop=context.should_stop,
        should_keep_state=context.should_keep_state,
        on_checkpoint=publish_checkpoints,
        num_threads=settings.trainer.num_threads,
    )
    _note_gain(context, training)
    context.enter("publishing")
    report = check_adapter_folder(
        training.adapter_dir,
        empty_model(settings.base_model),
        max_rank=settings.expert_service.max_rank,
        base_fingerprint=base.fingerprint,
    )
    evidence = EvidenceMaker(
        settings=settings,
        storage=context.storage,
        tokenizer=load_tokenizer(settings.base_model, chat_template=settings.chat_template),
        fingerprint=base.fingerprint,
        tap_layer=tap_layer,
    )
    digest = publish_expert(context.storage, training.adapter_dir, examples=train, evidence=evidence)
    default_router = _default_router(context, spec, base, evidence)
    metrics = _metrics(training) | {"base_model": base.name}
    checkpoints = publish_checkpoints()
    activation = _activation(context, spec, base, digest)

    def publish(session: Session) -> dict[str, Any]:
        version = register_expert(
            session,
            name=spec.name,
            domain=spec.domain,
            description=spec.description,
            digest=digest,
            report=report,
            has_evidence=True,
            source="trained",
            job_id=context.job_id,
            metrics=metrics,
        )
        result = {
            "expert": spec.name,
            "version": version.version,
            "digest": digest,
            "metrics": metrics,
            "artifacts": {"expert": digest},
            **({"checkpoints": checkpoints} if spec.keep_checkpoints else {}),
        }
        if not wants_release(spec):
            return result
        made = join_release(
            session,
            version,
            base=base,
            default_router=default_router,
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


def _refuse_what_cannot_join(context: JobContext, spec: ExpertJobSpec, base: BaseIdentity) -> None:
    """Say before the training, not after it, that a learned router has no column for a newcomer."""
    if not wants_release(spec):
        return
    with context.sessions() as session:
        current = current_release(session, base)
        known = {version.expert_name for version in versions_of(current)}
    if current is not None and current.router_kind == RouterKind.LEARNED and spec.name not in known:
        raise JobFailed(
            f"The active {current.id} has a learned router, which takes no newcomer: submit with add_to_release false "
            "and train a router over all experts afterwards, or activate a release with a bayes router first.",
            code="router_takes_no_newcomer",
        )


def _tap_layer(context: JobContext, base: BaseIdentity) -> int | None:
    """Where the active release's router reads hidden states, or the configured one would; None when it reads none."""
    with context.sessions() as session:
        current = current_release(session, base)
    if current is None or current.router_kind != RouterKind.BAYES:
        return context.settings.router.tap_layer or None
    router = read_router_file(context.storage.artifact(current.router_digest))
    return router.tap_layer if EvidenceKind.TRUNK in router.evidence_weights else None


def _above_tap(hyperparameters: ExpertHyperparameters, tap_layer: int | None, base_model: str) -> ExpertHyperparameters:
    """LoRA only above the tap unless the job says otherwise, so that the router hears the bare trunk (DESIGN D1)."""
    if tap_layer is None or hyperparameters.layers_to_transform is not None:
        return hyperparameters
    from transformers import AutoConfig

    num_layers = AutoConfig.from_pretrained(base_model).get_text_config().num_hidden_layers
    return hyperparameters.model_copy(update={"layers_to_transform": tuple(range(tap_layer, num_layers))})


def _default_router(
    context: JobContext, spec: ExpertJobSpec, base: BaseIdentity, evidence: EvidenceMaker
) -> Callable[[], Router]:
    """The router of the first release, made now if none is active, because that takes sampling from the base model."""

    @cache
    def make() -> Router:
        return publish_bayes_router(context.storage, context.settings.router, evidence.base_row())

    with context.sessions() as session:
        is_needed = wants_release(spec) and current_release(session, base) is None
    if is_needed:
        context.enter("making the router")
        make()
    return make


def _activation(context: JobContext, spec: ExpertJobSpec, base: BaseIdentity, digest: str) -> Activation | None:
    """Measured against the active release, if there is one that the newcomer would join."""
    if not spec.activate:
        return None
    with context.sessions() as session:
        current = current_release(session, base)
    judgement = None
    if current is not None:
        digests = {version.expert_name: version.digest for version in versions_of(current)} | {spec.name: digest}
        candidate = Candidate(
            experts=[(name, context.storage.artifact(one)) for name, one in digests.items()],
            router_dir=context.storage.artifact(current.router_digest),
            graph_dir=context.storage.artifact(current.graph_digest) if current.graph_digest else None,
        )
        judgement = judge(context, candidate)
    return Activation(tolerance_of(context.settings, spec), judgement)


def _trainer(context: JobContext) -> Callable[..., "ExpertTraining"]:
    """`train_expert` in this process, or in as many as the settings say."""
    num_processes = context.settings.trainer.num_processes
    if num_processes == 1:
        from services.trainer_worker.training.expert import train_expert

        return train_expert
    from services.trainer_worker.training.expert_launch import launch_expert_training

    return partial(launch_expert_training, num_processes=num_processes, note=context.note)


def _note_gain(context: JobContext, training: "ExpertTraining") -> None:
    before, after = training.base_eval_loss, training.best_eval_loss
    figures = f"validation loss {before:.4f} before, {after:.4f} after"
    if after < before:
        context.note(f"Trained: {figures}.", data=_metrics(training))
    else:
        context.note(
            f"The expert is no better than the base model on the validation examples ({figures}): more data, more "
            "epochs or another learning_rate may help.",
            level="warn",
            data=_metrics(training),
        )


def _metrics(training: "ExpertTraining") -> dict[str, Any]:
    return {
        "base_eval_loss": training.base_eval_loss,
        "eval_loss": training.best_eval_loss,
        "num_train_tokens": training.num_train_tokens,
        "num_steps": training.num_steps,
        "stopped_early": training.stopped_early,
        "seconds": round(training.seconds, 3),
        "tokens_per_s": round(training.tokens_per_s, 1),
        "peak_memory_bytes": training.peak_memory_bytes,
    }
