"""An expert from examples: trained, checked, published with its evidence, and put beside the experts of the active
release. What jobs of kind `expert` and `expert_creation` share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.shared.database.rows import ReleaseRow
from services.shared.errors import JobFailed
from services.shared.modeling.router_artifact import read_router_file
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.sequences import AdapterReport
from services.shared.tokenizer import load_tokenizer
from services.shared.training_text import Example
from services.shared.vocabulary import EvidenceKind, RouterKind
from services.trainer_worker.activation_gate import Candidate
from services.trainer_worker.evidence import EvidenceMaker
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.publishing import publish_bayes_router, publish_expert
from services.trainer_worker.releases import BaseIdentity, Router, current_release, versions_of

if TYPE_CHECKING:
    from services.trainer_worker.training.training_folder import ExpertTraining


@dataclass(frozen=True)
class PublishedExpert:
    """An adapter with its evidence in storage, and what was found in it."""

    digest: str
    report: AdapterReport


class ExpertMaker:
    """Makes experts of one job, for the base model that its worker has."""

    def __init__(self, context: JobContext, base: BaseIdentity) -> None:
        self._context = context
        self._base = base
        self._tap_layer = _tap_layer(context, base)
        self._evidence = EvidenceMaker(
            settings=context.settings,
            storage=context.storage,
            tokenizer=load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template),
            fingerprint=base.fingerprint,
            tap_layer=self._tap_layer,
        )

    def train(
        self,
        train: Sequence[Example],
        validation: Sequence[Example],
        hyperparameters: ExpertHyperparameters,
        *,
        folder: Path,
        on_checkpoint: Callable[[], object] = lambda: None,
    ) -> "ExpertTraining":
        """Train in `folder`, going on from what an interruption left there; the gain becomes an event."""
        context = self._context
        training = _trainer(context)(
            base_model=context.settings.base_model,
            train=train,
            validation=validation,
            hyperparameters=_above_tap(hyperparameters, self._tap_layer, context.settings.base_model),
            output_dir=folder,
            on_progress=context.report,
            should_stop=context.should_stop,
            should_keep_state=context.should_keep_state,
            on_checkpoint=on_checkpoint,
            num_threads=context.settings.trainer.num_threads,
        )
        _note_gain(context, training)
        return training

    def publish(self, training: "ExpertTraining", examples: Sequence[Example]) -> PublishedExpert:
        """Publish what was trained on `examples`, with its evidence, if it can be served. Raises InvalidAdapter."""
        from services.shared.modeling.adapter_files import check_adapter_folder
        from services.shared.modeling.base_model import empty_model

        settings = self._context.settings
        report = check_adapter_folder(
            training.adapter_dir,
            empty_model(settings.base_model),
            max_rank=settings.expert_service.max_rank,
            base_fingerprint=self._base.fingerprint,
        )
        digest = publish_expert(self._context.storage, training.adapter_dir, examples=examples, evidence=self._evidence)
        return PublishedExpert(digest, report)

    @cached_property
    def default_router(self) -> Router:
        """The router of the first release, made once, because that takes sampling from the base model."""
        context = self._context
        return publish_bayes_router(context.storage, context.settings.router, self._evidence.base_row())

    def candidate(self, current: ReleaseRow | None, name: str, digest: str) -> Candidate:
        """The release that the expert would make with those of `current`; it replaces one of the same name."""
        artifact = self._context.storage.artifact
        digests = {version.expert_name: version.digest for version in versions_of(current)} | {name: digest}
        router_digest = current.router_digest if current is not None else self.default_router.digest
        graph_digest = current.graph_digest if current is not None else None
        return Candidate(
            experts=[(one, artifact(its_digest)) for one, its_digest in digests.items()],
            router_dir=artifact(router_digest),
            graph_dir=artifact(graph_digest) if graph_digest else None,
        )


def refuse_what_cannot_join(context: JobContext, name: str, base: BaseIdentity) -> None:
    """Say before the training, not after it, that a learned router has no column for a newcomer."""
    with context.sessions() as session:
        current = current_release(session, base)
        known = {version.expert_name for version in versions_of(current)}
    if current is not None and current.router_kind == RouterKind.LEARNED and name not in known:
        raise JobFailed(
            f"The active {current.id} has a learned router, which takes no newcomer: submit with add_to_release false "
            "and train a router over all experts afterwards, or activate a release with a bayes router first.",
            code="router_takes_no_newcomer",
        )


def training_metrics(training: "ExpertTraining") -> dict[str, Any]:
    """What is told of a training; losses in nats per token."""
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
        context.note(f"Trained: {figures}.", data=training_metrics(training))
    else:
        context.note(
            f"The expert is no better than the base model on the validation examples ({figures}): more data, more "
            "epochs or another learning_rate may help.",
            level="warn",
            data=training_metrics(training),
        )
