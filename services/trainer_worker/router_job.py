"""Jobs of kind `router`: a Bayes router over the experts' evidence, or a learned one, and a release with it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from services.shared.config import RouterSettings
from services.shared.database.rows import ExpertVersionRow
from services.shared.errors import InvalidRequest, JobFailed
from services.shared.registry import latest_versions, register_expert
from services.shared.schemas.jobs import RouterJobSpec
from services.shared.schemas.sequences import AdapterReport
from services.shared.tokenizer import load_tokenizer
from services.shared.training_text import Example
from services.shared.vocabulary import RouterKind
from services.trainer_worker.activation_gate import Candidate, judge, tolerance_of
from services.trainer_worker.base_identity import configured_base
from services.trainer_worker.evidence import EvidenceMaker
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish
from services.trainer_worker.publishing import publish_bayes_router, publish_expert
from services.trainer_worker.releases import (
    Activation,
    BaseIdentity,
    Router,
    current_release,
    release_with_router,
    versions_of,
)
from services.trainer_worker.training_files import evidence_texts, examples_of


@dataclass(frozen=True)
class Column:
    """An expert of the router to be made. `digest` differs from the version's where evidence was added."""

    version: ExpertVersionRow
    digest: str

    def registered(self, session: Session, job_id: str) -> ExpertVersionRow:
        """The version to be released: the one there is, or a new one with the evidence."""
        version = self.version
        if self.digest == version.digest:
            return version
        report = AdapterReport(
            rank=version.rank,
            num_parameters=version.num_parameters,
            num_bytes=version.num_bytes,
            target_modules=(),
            lowest_layer=0,
            base_fingerprint=version.base_fingerprint,
        )
        return register_expert(
            session,
            name=version.expert_name,
            domain=None,
            description="",
            digest=self.digest,
            report=report,
            has_evidence=True,
            source="trained" if version.source == "trained" else "imported",
            job_id=job_id,
            metrics=version.metrics,
        )


@dataclass(frozen=True)
class Made:
    """A published router, the experts of its columns, and what its training measured."""

    router: Router
    columns: list[Column]
    metrics: Mapping[str, Any]


def run_router_job(context: JobContext) -> Publish:
    """Make the router; what is returned makes the release."""
    spec = RouterJobSpec.model_validate(context.spec)
    context.enter("reading")
    settings = router_settings(context.settings.router, spec)
    base = configured_base(context.settings)
    versions = _versions(context, spec, base)
    make = _make_bayes if settings.kind == RouterKind.BAYES else _make_learned
    made = make(context, spec, settings, versions, base)
    router, columns = made.router, made.columns
    activation = _activation(context, spec, made, base) if spec.activate else None

    def publish(session: Session) -> dict[str, Any]:
        result: dict[str, Any] = {
            "router": router.digest,
            "router_kind": router.kind.value,
            "experts": [version.expert_name for version in versions],
            "metrics": dict(made.metrics),
            "artifacts": {"router": router.digest},
        }
        if not (spec.create_release or spec.activate):
            return result
        released = release_with_router(
            session,
            router,
            [column.registered(session, context.job_id) for column in columns],
            base=base,
            activation=activation,
            note=f"{router.kind.value} router by {context.job_id}",
        )
        return result | released.told(session, context.job_id)

    return publish


def _activation(context: JobContext, spec: RouterJobSpec, made: Made, base: BaseIdentity) -> Activation:
    """Measured against the active release, if there is one for this base model."""
    with context.sessions() as session:
        current = current_release(session, base)
    judgement = None
    if current is not None:
        candidate = Candidate(
            experts=[(column.version.expert_name, context.storage.artifact(column.digest)) for column in made.columns],
            router_dir=context.storage.artifact(made.router.digest),
            graph_dir=context.storage.artifact(current.graph_digest) if current.graph_digest else None,
        )
        judgement = judge(context, candidate)
    return Activation(tolerance_of(context.settings, spec.tolerance), judgement)


def router_settings(configured: RouterSettings, spec: RouterJobSpec) -> RouterSettings:
    """The configuration with the job's own settings over it. Raises InvalidRequest naming what is wrong."""
    try:
        return RouterSettings.model_validate({**configured.model_dump(), **spec.settings, "kind": spec.router})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(RouterSettings.model_fields)
        raise InvalidRequest(
            f"settings.{name}: {first['msg']}. Settings of a router are: {known}.", param=f"settings.{name}"
        ) from error


def _versions(context: JobContext, spec: RouterJobSpec, base: BaseIdentity) -> list[ExpertVersionRow]:
    """The newest versions of the named experts; by default, the versions of the active release, or of all experts."""
    with context.sessions() as session:
        current = current_release(session, base)
        if spec.experts is None and current is not None:
            versions = versions_of(current)
        else:
            versions = latest_versions(session, spec.experts)
            if spec.experts is None:
                versions = [version for version in versions if version.base_fingerprint == base.fingerprint]
    if not versions:
        raise JobFailed("There is no expert to route to: import or train one first.", code="no_experts")
    return versions


def _make_bayes(
    context: JobContext,
    spec: RouterJobSpec,
    settings: RouterSettings,
    versions: list[ExpertVersionRow],
    base: BaseIdentity,
) -> Made:
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    evidence = EvidenceMaker(
        settings=context.settings,
        storage=context.storage,
        tokenizer=tokenizer,
        fingerprint=base.fingerprint,
        tap_layer=settings.tap_layer or None,
    )
    columns = []
    for version in versions:
        context.enter(f"evidence of {version.expert_name}")
        columns.append(_with_evidence(context, spec, version, evidence))
    context.enter("evidence of the base model")
    generic = examples_of(context, spec.generic_file, tokenizer) if spec.generic_file else None
    return Made(publish_bayes_router(context.storage, settings, evidence.base_row(generic)), columns, {})


def _with_evidence(
    context: JobContext, spec: RouterJobSpec, version: ExpertVersionRow, evidence: EvidenceMaker
) -> Column:
    """The expert as it is if its evidence suffices, else published again with evidence from its file or exemplars."""
    folder = context.storage.artifact(version.digest)
    if evidence.suffices(folder):
        return Column(version, version.digest)
    name = version.expert_name
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    examples = evidence_texts(context, folder, spec.training_files.get(name), tokenizer)
    if examples is None:
        raise JobFailed(
            f"Expert {name!r} lacks evidence that this router needs to tell when it should speak: name a file with "
            f"texts of its domain under training_files.{name}, or leave it out of experts.",
            code="expert_without_evidence",
        )
    return Column(version, publish_expert(context.storage, folder, examples=examples, evidence=evidence))


def _make_learned(
    context: JobContext,
    spec: RouterJobSpec,
    settings: RouterSettings,
    versions: list[ExpertVersionRow],
    base: BaseIdentity,
) -> Made:
    missing = [version.expert_name for version in versions if version.expert_name not in spec.training_files]
    if missing:
        raise JobFailed(
            f"A learned router needs text of every expert: name files for {', '.join(missing)} under training_files.",
            code="training_file_missing",
        )
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    texts: dict[str, list[Example]] = {
        version.expert_name: examples_of(context, spec.training_files[version.expert_name], tokenizer)
        for version in versions
    }
    from services.shared.modeling.base_model import load_base_model
    from services.trainer_worker.training.router import train_learned_router

    context.enter("loading the base model")
    training = train_learned_router(
        base=load_base_model(context.settings),
        experts=[(version.expert_name, context.storage.artifact(version.digest)) for version in versions],
        texts=texts,
        settings=settings,
        hyperparameters=spec.hyperparameters,
        output_dir=context.folder.work,
        on_progress=context.report,
        should_stop=context.should_stop,
        should_keep_state=context.should_keep_state,
    )
    router = Router(context.storage.publish(training.router_dir), RouterKind.LEARNED)
    metrics = {
        **asdict(training.judgement),
        "load_balance": training.load_balance,
        "num_overflow": training.num_overflow,
        "num_steps": training.num_steps,
        "tokens_per_s": round(training.tokens_per_s, 1),
        "base_model": base.name,
    }
    return Made(router, [Column(version, version.digest) for version in versions], metrics)
