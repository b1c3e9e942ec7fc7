"""What a job would do, without doing it: its files looked through, its steps counted, its cost estimated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Float, select
from sqlalchemy.orm import Session

from services.router_service.creation_plan import creation_plan, creation_steps
from services.router_service.dataset_report import Survey
from services.router_service.recorded_costs import Recorded, estimate_from, graph_steps, work_of
from services.router_service.schemas.dry_run import DryRun
from services.router_service.training_cost import MeasuredRate, Work, estimate
from services.shared.base_shape import BaseShape
from services.shared.database.rows import JobRow
from services.shared.modeling.bigram_evidence import DEFAULT_MAX_TOKENS
from services.shared.schemas.calibration import CalibrationJobSpec
from services.shared.schemas.cooperation_graph import CooperationGraphJobSpec
from services.shared.schemas.evaluation import EvaluationJobSpec, PeerName
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.gap_analysis import DAY_S, GapAnalysisJobSpec
from services.shared.schemas.image_cooperation import ImageCooperationJobSpec
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.schemas.jobs import ExpertJobSpec, RouterJobSpec
from services.shared.schemas.trace import NUM_TRACE_DOMAINS, TraceJobSpec, TracePrompt
from services.shared.training_plan import StepPlan, block_sizes, held_out_indices
from services.shared.vocabulary import JobKind, JobStatus, RouterKind

_FEW_EXAMPLES = 20
_PASSES_OF_A_ROUTER_STEP = 1.5
"""A router reads the trunk's states and then goes through the mixture; its experts weigh little beside the base."""
_PASSES_OF_A_READING = 0.5
"""Forward alone."""
_ROWS_READ_AT_ONCE = 16
_PASSES_WHEN_CHECKPOINTED = 1.5
"""The forward pass, two of the four operations per parameter, is done twice."""


@dataclass(frozen=True)
class Ground:
    """What estimates rest on: the base model's shape and context, the queue, and a rate if one was measured.

    `num_pictures` an image job trains on, and `num_experts` a router is made over, where that is known; `tap_layer` is
    the configured router's, `num_processes` train an expert together.
    """

    shape: BaseShape
    max_context: int | None
    queue: str
    measured: MeasuredRate | None
    recorded: Sequence[Recorded] = ()
    num_pictures: int | None = None
    num_experts: int = 0
    tap_layer: int | None = None
    trace_prompts: Sequence[TracePrompt] = ()
    num_processes: int = 1

    def within_context(self, max_length: int) -> int:
        """Training never reads more at once than the base model can."""
        return min(max_length, self.max_context or max_length)


def dry_run(spec: JobSpecBase, surveys: Mapping[str, Survey], ground: Ground) -> DryRun:
    """What is known of a job from its spec and its files, these by the field that names them.

    Raises InvalidDataset when training would find too little to learn from, and InvalidRequest when the processes of
    one training could not share its steps.
    """
    max_length = ground.within_context(_max_length(spec))
    ids = spec.named_files()
    files = {field: one.report(file_id=ids[field], max_length=max_length) for field, one in surveys.items()}
    report = DryRun(kind=spec.kind, files=files)
    match spec:
        case ExpertJobSpec() | ExpertCreationJobSpec():
            report = _trained(report, spec, surveys, ground)
        case RouterJobSpec():
            of_kind = _learned_router if spec.router == RouterKind.LEARNED else _bayes_router
            report = of_kind(report, spec, ground)
        case ImageCooperationJobSpec():
            report = _image_experiment(report, spec, ground)
        case EvaluationJobSpec():
            report = _evaluation(report, spec, surveys, ground)
        case GapAnalysisJobSpec():
            report = report.model_copy(update={"plan": _gap_plan(spec)})
        case CooperationGraphJobSpec() | CalibrationJobSpec() | TraceJobSpec():
            report = report.model_copy(update=_counts(spec, ground))
    if report.estimate is None and not isinstance(spec, ExpertJobSpec):
        report = report.model_copy(update={"estimate": estimate_from(ground.recorded, work_of(spec))})
    return report.model_copy(update={"warnings": _warnings(report)})


def measured_rate(session: Session, kind: JobKind, *, base_model: str, queue: str) -> MeasuredRate | None:
    """Of the last job of the kind that succeeded on this base model in this queue."""
    metrics = JobRow.result["metrics"]
    rate = metrics["tokens_per_s"].astext.cast(Float)
    query = (
        select(JobRow.id, rate)
        .where(
            JobRow.kind == kind.value,
            JobRow.status == JobStatus.SUCCEEDED.value,
            JobRow.queue == queue,
            metrics["base_model"].astext == base_model,
            rate > 0,
        )
        .order_by(JobRow.finished_at.desc())
        .limit(1)
    )
    found = session.execute(query).one_or_none()
    return MeasuredRate(found[0], found[1]) if found is not None else None


def _max_length(spec: JobSpecBase) -> int:
    if isinstance(spec, ExpertJobSpec | RouterJobSpec):
        return spec.hyperparameters.max_length
    return ExpertHyperparameters().max_length


def _trained(
    report: DryRun, spec: ExpertJobSpec | ExpertCreationJobSpec, surveys: Mapping[str, Survey], ground: Ground
) -> DryRun:
    if isinstance(spec, ExpertJobSpec):
        return _expert(report, spec, surveys, ground)
    num_steps = creation_steps(spec, surveys, max_context=ground.max_context)
    return report.model_copy(update={"plan": creation_plan(spec), "num_steps": num_steps})


def _expert(report: DryRun, spec: ExpertJobSpec, surveys: Mapping[str, Survey], ground: Ground) -> DryRun:
    hyperparameters = spec.hyperparameters
    training, validation = surveys["training_file"], surveys.get("validation_file")
    train_N = training.sizes_N
    num_overlapping, num_validation = None, 0
    if validation is None:
        held_out = held_out_indices(
            len(train_N), fraction=hyperparameters.validation_fraction, seed=hyperparameters.seed
        )
        num_validation = len(held_out)
        train_N = np.delete(train_N, sorted(held_out))
    else:
        num_overlapping, num_validation = validation.num_shared(training), len(validation.sizes_N)
    max_length = ground.within_context(hyperparameters.max_length)
    sizes = block_sizes(
        train_N.tolist(), max_length=max_length, packing=hyperparameters.packing, seed=hyperparameters.seed
    )
    counts: dict[str, object] = {
        "num_overlapping": num_overlapping,
        "num_train_examples": len(train_N),
        "num_validation_examples": num_validation,
    }
    if not sizes:
        return report.model_copy(update=counts)
    plan = StepPlan.of(hyperparameters, len(sizes))
    plan.shared_by(ground.num_processes)
    num_blocks = plan.num_steps * plan.blocks_per_step
    work = Work(
        num_tokens=round(num_blocks * sum(sizes) / len(sizes)),
        num_steps=plan.num_steps,
        batch_size=plan.batch_size,
        length=max(sizes),
        rank=hyperparameters.rank,
        half_precision=hyperparameters.mixed_precision != "no" or hyperparameters.quantization != "none",
        base_bytes_per_weight=_base_bytes_per_weight(hyperparameters),
        checkpointed=hyperparameters.gradient_checkpointing,
        num_passes=_PASSES_WHEN_CHECKPOINTED if hyperparameters.gradient_checkpointing else 1.0,
    )
    counts |= {
        "num_steps": plan.num_steps,
        "num_epochs": round(num_blocks / len(sizes), 3),
        "num_tokens": work.num_tokens,
        "estimate": estimate(ground.shape, work, queue=ground.queue, measured=ground.measured),
    }
    return report.model_copy(update=counts)


def _base_bytes_per_weight(hyperparameters: ExpertHyperparameters) -> float:
    by_quantization = {"4bit": 0.5, "8bit": 1.0}
    whole = 4.0 if hyperparameters.mixed_precision == "no" else 2.0
    return by_quantization.get(hyperparameters.quantization, whole)


def _learned_router(report: DryRun, spec: RouterJobSpec, ground: Ground) -> DryRun:
    hyperparameters = spec.hyperparameters
    length = ground.within_context(hyperparameters.max_length)
    work = Work(
        num_tokens=hyperparameters.num_steps * hyperparameters.batch_size * length,
        num_steps=hyperparameters.num_steps,
        batch_size=hyperparameters.batch_size,
        length=length,
        rank=16 * max(len(spec.training_files), 1),
        half_precision=False,
        num_passes=_PASSES_OF_A_ROUTER_STEP,
    )
    return report.model_copy(
        update={
            "num_steps": work.num_steps,
            "num_tokens": work.num_tokens,
            "estimate": estimate(ground.shape, work, queue=ground.queue, measured=ground.measured),
        }
    )


def _bayes_router(report: DryRun, spec: RouterJobSpec, ground: Ground) -> DryRun:
    """Nothing is learned: what takes time is what the base model writes and reads."""
    tap_layer = spec.settings.get("tap_layer", ground.tap_layer)
    reads_states = isinstance(tap_layer, int) and tap_layer > 0
    num_samples = int(spec.generic_file is None or reads_states) + (ground.num_experts + 1) * reads_states
    work = Work(
        num_tokens=num_samples * DEFAULT_MAX_TOKENS,
        num_steps=0,
        batch_size=_ROWS_READ_AT_ONCE,
        length=ground.within_context(ExpertHyperparameters().max_length),
        rank=0,
        half_precision=False,
        num_passes=_PASSES_OF_A_READING,
    )
    generic = "generic_file" if spec.generic_file is not None else "what the base model writes"
    states = f" and of its states after layer {tap_layer}" if reads_states else ""
    plan = (
        f"A Bayes router is not trained. For experts that lack it, evidence of token pairs{states} is made of their "
        f"training_files or exemplars; the base row is made of {generic}, at most {DEFAULT_MAX_TOKENS} tokens. What "
        "the base model writes is sampled once per base model and kept."
    )
    return report.model_copy(
        update={
            "plan": plan,
            "num_steps": 0,
            "num_tokens": work.num_tokens,
            "estimate": estimate_from(ground.recorded, work_of(spec))
            or estimate(ground.shape, work, queue=ground.queue, measured=None),
        }
    )


def _gap_plan(spec: GapAnalysisJobSpec) -> str:
    return (
        f"At most {spec.max_requests} flagged requests of the last {spec.window_s / DAY_S:.3g} days, beside as many "
        f"ordinary ones, are put into clusters; each of {spec.min_cluster_size} or more becomes a gap."
    )


def _trace(spec: TraceJobSpec, ground: Ground) -> dict[str, object]:
    prompts = ground.trace_prompts
    if prompts:
        num_tokens = sum(spec.max_tokens or prompt.n_predict for prompt in prompts)
        asked = f"{len(prompts)} prompts of its own (domains: {len({prompt.domain for prompt in prompts})})"
    else:
        num_tokens = round(work_of(spec))
        asked = f"{spec.prompts_per_domain} prompts of each of {NUM_TRACE_DOMAINS} domains that come with the project"
    whose = spec.model or spec.release or "the active release"
    plan = (
        f"Asks {whose} {asked}. At most {num_tokens} tokens are generated; which experts each token went through "
        "becomes a trace and its analysis."
    )
    return {"plan": plan, "num_tokens": num_tokens}


def _image_experiment(report: DryRun, spec: ImageCooperationJobSpec, ground: Ground) -> DryRun:
    epochs = f"{spec.num_epochs} epochs, {spec.batch_size} pictures at a step"
    if ground.num_pictures is None:
        plan = f"{epochs}. How many pictures there are, and so how many steps, is known when the worker has read them."
        num_steps = None
    else:
        plan = f"{epochs}, over {ground.num_pictures} pictures."
        num_steps = spec.num_steps(ground.num_pictures)
    return report.model_copy(update={"plan": plan, "num_steps": num_steps, "num_epochs": float(spec.num_epochs)})


def _counts(spec: CooperationGraphJobSpec | CalibrationJobSpec | TraceJobSpec, ground: Ground) -> dict[str, object]:
    if isinstance(spec, TraceJobSpec):
        return _trace(spec, ground)
    if isinstance(spec, CalibrationJobSpec):
        plan = "Reads every document under the base model, its own expert, the mixture and the mixture without it."
        return {"plan": plan, "num_tokens": round(work_of(spec))}
    num_steps, numbers = graph_steps(spec), spec.hyperparameters
    num_tokens = num_steps * numbers.batch_size * ground.within_context(numbers.max_length)
    return {"num_steps": num_steps, "num_tokens": num_tokens}


def _evaluation(report: DryRun, spec: EvaluationJobSpec, surveys: Mapping[str, Survey], ground: Ground) -> DryRun:
    """At most: documents may be fewer and shorter than they may be."""
    steps = {peer: _peer_steps(peer, spec, surveys, ground) for peer in spec.trained_peers}
    num_trainings, num_read = len(spec.each_peer_seed), round(work_of(spec))
    times = "once" if num_trainings == 1 else f"{num_trainings} times"
    done = [f"trains the peer {peer} {times} for {num} steps" for peer, num in steps.items()]
    if spec.tap_layers:
        layers = ", ".join(map(str, spec.tap_layers))
        done.append(f"makes the evidence that experts lack after the base model's layers {layers}")
    return report.model_copy(
        update={
            "plan": f"{'; '.join([*done, f'reads at most {num_read} tokens'])}.".capitalize(),
            "num_steps": num_trainings * sum(steps.values()),
            "num_tokens": num_read,
        }
    )


def _peer_steps(peer: PeerName, spec: EvaluationJobSpec, surveys: Mapping[str, Survey], ground: Ground) -> int:
    """Of one training, at most: a few examples of a multi-task adapter's validate."""
    if peer == "x_lora":
        return spec.x_lora.num_steps
    hyperparameters = ExpertHyperparameters(**spec.multi_task.model_dump())
    sizes = [size for domain in spec.held_out for size in surveys[f"training_files.{domain}"].sizes_N.tolist()]
    max_length = ground.within_context(hyperparameters.max_length)
    blocks = block_sizes(sizes, max_length=max_length, packing=hyperparameters.packing, seed=hyperparameters.seed)
    return StepPlan.of(hyperparameters, len(blocks)).num_steps if blocks else 0


def _warnings(report: DryRun) -> list[str]:
    found = []
    for field, file in report.files.items():
        if file.num_duplicates:
            found.append(f"{field}: {file.num_duplicates} of {file.num_examples} examples occur more than once.")
        if file.num_examples < _FEW_EXAMPLES:
            found.append(f"{field}: {file.num_examples} examples are few; {_FEW_EXAMPLES} or more are advisable.")
        if file.num_cut:
            found.append(f"{field}: {file.num_cut} examples are longer than max_length and learned in pieces.")
    if report.num_overlapping:
        found.append(
            f"{report.num_overlapping} validation examples are in the training file too: the validation loss will look "
            "better than it is."
        )
    if report.estimate is None and report.kind != JobKind.EXPERT:
        found.append(
            "No job like it has succeeded here yet, so its time and memory are not known: a small one first would tell."
        )
    if report.num_train_examples is not None and report.num_steps is None:
        found.append("Nothing is left to learn: texts need at least two tokens.")
    return found
