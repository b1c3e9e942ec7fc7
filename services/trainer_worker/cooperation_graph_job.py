"""Jobs of kind `cooperation_graph`: who recruits whom, learned beside its controls, and a release if it beats them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from services.shared.errors import InvalidRequest
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.cooperation_graph import CooperationGraph
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.schemas.cooperation_graph import CooperationGraphJobSpec
from services.shared.tokenizer import Tokenizer, load_tokenizer
from services.shared.training_text import Example
from services.trainer_worker.base_identity import configured_base
from services.trainer_worker.graph_artifact import headline, write_report
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish
from services.trainer_worker.released import Released, released
from services.trainer_worker.releases import release_with_graph
from services.trainer_worker.training.cooperation_graph import train_cooperation_graph
from services.trainer_worker.training.graph_plan import GraphPlan
from services.trainer_worker.training.graph_report import GraphReport
from services.trainer_worker.training_files import examples_of

_MIXED = "mixed"


def run_cooperation_graph_job(context: JobContext) -> Publish:
    """Learn and judge; what is returned makes the release, if one is wanted and the graph has earned it."""
    spec = CooperationGraphJobSpec.model_validate(context.spec)
    context.enter("reading")
    identity = configured_base(context.settings)
    release = released(context, spec.release, identity)
    experts = _experts(release, spec)
    tokenizer = load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)
    texts = _texts(context, spec, experts, tokenizer)
    context.enter("loading the base model")
    base = load_base_model(context.settings)
    report = _learn(context, spec, release, experts, base, texts)
    context.enter("reporting")
    graph = _published_graph(context, report)
    about = {"release": release.row.id, "base_model": release.row.base_model, "l1": spec.l1}
    with context.storage.stage() as staged:
        write_report(report, staged / "report", about=about, tokenizer=tokenizer)
        artifacts = {"graph": graph, "report": context.storage.publish(staged / "report")}
    context.note(headline(report), data={"beats_controls": report.beats_controls, "sparsity": report.sparsity})

    def publish(session: Session) -> dict[str, Any]:
        result: dict[str, Any] = {
            "graph": graph,
            "artifacts": artifacts,
            "trained_on": release.row.id,
            "sparsity": report.sparsity,
            "gains_over": {name: list(gain) for name, gain in report.gains_over.items()},
            "gain_on_whole_documents": list(report.gain_on_whole),
            "beats_controls": report.beats_controls,
            "release": None,
        }
        if not (spec.create_release and report.beats_controls):
            return result
        note = f"graph by {context.job_id}"
        made = release_with_graph(session, release.row, graph, base=identity, note=note)
        return result | {"release": made.id}

    return publish


def _experts(release: Released, spec: CooperationGraphJobSpec) -> list[tuple[str, Path]]:
    """Those of the release that the graph is over, in its order. Raises InvalidRequest for others, or less than two."""
    known = [name for name, _ in release.experts]
    for field, names in (("experts", spec.experts or ()), ("training_files", spec.training_files)):
        if strangers := [name for name in names if name not in known]:
            raise InvalidRequest(
                f"{release.row.id} has no expert {', '.join(strangers)}: its experts are {', '.join(known)}.",
                param=field,
            )
    chosen = [(name, folder) for name, folder in release.experts if name in (spec.experts or known)]
    if unused := [name for name in spec.training_files if name not in dict(chosen)]:
        raise InvalidRequest(
            f"The graph is not over {', '.join(unused)}: name them under experts, or give their text as mixed_files.",
            param="training_files",
        )
    if len(chosen) < 2:
        raise InvalidRequest("A graph is between experts: it needs two or more.", param="experts")
    return chosen


def _texts(
    context: JobContext, spec: CooperationGraphJobSpec, experts: Sequence[tuple[str, Path]], tokenizer: Tokenizer
) -> dict[str, list[Example]]:
    texts = {
        name: examples_of(context, spec.training_files[name], tokenizer)
        for name, _ in experts
        if name in spec.training_files
    }
    for index, file_id in enumerate(spec.mixed_files):
        # A space is in no expert's name.
        texts[f"{_MIXED} {index}"] = examples_of(context, file_id, tokenizer)
    return texts


def _learn(
    context: JobContext,
    spec: CooperationGraphJobSpec,
    release: Released,
    experts: Sequence[tuple[str, Path]],
    base: LoadedBase,
    texts: dict[str, list[Example]],
) -> GraphReport:
    scorer = ReleaseScorer.load(
        router_dir=release.router_dir, graph_dir=None, experts=experts, vocab_size=base.tokenizer.vocab_size
    )
    return train_cooperation_graph(
        base=base,
        experts=experts,
        scorer=scorer,
        max_experts=scorer.gate.max_experts,
        texts=texts,
        plan=_plan(spec, base),
        folder=context.folder.work / "graphs" / release.row.id,
        on_progress=context.report,
        should_stop=context.should_stop,
    )


def _plan(spec: CooperationGraphJobSpec, base: LoadedBase) -> GraphPlan:
    numbers = spec.hyperparameters
    return GraphPlan(
        num_steps=numbers.num_steps,
        batch_size=numbers.batch_size,
        length=min(numbers.max_length, base.max_context),
        learning_rate=numbers.learning_rate,
        l1=spec.l1,
        seeds=spec.seeds,
        num_test_documents=numbers.num_test_documents,
        num_epochs=min(numbers.num_epochs, numbers.num_steps),
        l1_sweep=spec.l1_sweep if spec.controls else (),
        top_ks=spec.top_ks,
        controls=spec.controls,
        joint=spec.joint,
        router_learning_rate=numbers.router_learning_rate,
        expert_learning_rate=numbers.expert_learning_rate,
    )


def _published_graph(context: JobContext, report: GraphReport) -> str:
    graph: CooperationGraph = report.graph
    note = "beats its controls" if report.beats_controls else "does not beat its controls"
    with context.storage.stage() as folder:
        graph.save(folder, enabled=report.beats_controls, note=note)
        return context.storage.publish(folder)
