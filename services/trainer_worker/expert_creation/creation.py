"""The steps of an expert's creation, each as figures that outlast an interruption."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from services.shared.database.rows import ReleaseRow
from services.shared.release_evaluation import Evaluation
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.trainer_worker.activation_gate import Candidate, Judgement, judge, tolerance_of
from services.trainer_worker.datasets import split_examples
from services.trainer_worker.expert_creation.preparation import PreparedData, prepare
from services.trainer_worker.expert_creation.wanted import Wanted
from services.trainer_worker.expert_making import ExpertMaker, training_metrics
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.releases import Activation, BaseIdentity, current_release
from services.trainer_worker.training.training_folder import TrainingFolder

if TYPE_CHECKING:
    from services.shared.modeling.base_model import LoadedBase

Figures = dict[str, Any]


class Creation:
    """One job's. What a step needs of those before it is on disk, in storage, or among the figures it is given."""

    def __init__(self, context: JobContext, spec: ExpertCreationJobSpec, wish: Wanted, base: BaseIdentity) -> None:
        self.maker = ExpertMaker(context, base)
        self._context = context
        self._spec = spec
        self._wish = wish
        self._base = base
        self._data = PreparedData(context.folder.artifacts / "data")

    def prepare(self) -> Figures:
        """The data step: its report."""
        return prepare(self._context, self._spec, self._wish, self._loaded(), self._data)

    def train(self) -> Figures:
        """Of all ranks that are tried, the one with the least validation loss; of equal ones the smallest."""
        train, validation = split_examples(
            self._data.train,
            fraction=self._spec.hyperparameters.validation_fraction,
            seed=self._spec.hyperparameters.seed,
        )
        tried = {}
        for hyperparameters in sorted(self._spec.trainings, key=lambda one: one.rank):
            self._context.enter(f"training at rank {hyperparameters.rank}")
            training = self.maker.train(
                train, validation, hyperparameters, folder=self._training_folder(hyperparameters.rank)
            )
            tried[hyperparameters.rank] = training_metrics(training) | {"alpha": hyperparameters.alpha}
        rank = min(tried, key=lambda one: tried[one]["eval_loss"])
        return {"rank": rank, "metrics": tried[rank], "tried": {str(one): metrics for one, metrics in tried.items()}}

    def make_row(self, rank: int) -> Figures:
        """The expert with its evidence, published: what the gate hears it by."""
        training = TrainingFolder(self._training_folder(rank)).result()
        assert training is not None
        expert = self.maker.publish(training, self._data.train)
        return {"digest": expert.digest, "report": expert.report.model_dump(mode="json")}

    def has_row(self, figures: Mapping[str, Any]) -> bool:
        """Whether it is still in storage, where nothing refers to it yet."""
        return self._context.storage.hold(figures["digest"])

    def evaluate(self, digest: str) -> Figures:
        """The verdict on the newcomer, beside the release that is active now."""
        from services.trainer_worker.expert_creation.judging import Trial, judge_newcomer

        current = self._current()
        candidate = self.maker.candidate(current, self._wish.name, digest)
        judgement = judge(self._context, candidate) if current is not None else None
        self._context.enter("comparing on held-out data")
        verdict = judge_newcomer(
            Trial(
                newcomer=self._wish.name,
                current=current,
                present=Candidate.of(current, self._context.storage) if current is not None else None,
                candidate=candidate,
                judgement=judgement,
                tolerance=tolerance_of(self._context.settings, self._spec.tolerance),
            ),
            self._data.held_out,
            self._loaded(),
            max_length=self._spec.hyperparameters.max_length,
            completion_only=self._spec.hyperparameters.completion_only_loss,
            should_stop=self._context.should_stop,
        )
        return {
            "release": current.id if current is not None else None,
            "reasons": list(verdict.reasons),
            "figures": verdict.figures,
            "judgement": _stored(judgement or verdict.by_exemplars),
        }

    def is_of_current(self, judged: Mapping[str, Any]) -> bool:
        """Whether the release that it was compared with is still the active one."""
        with self._context.sessions() as session:
            return self.is_beside_active(session, judged)

    def is_beside_active(self, session: Session, judged: Mapping[str, Any]) -> bool:
        """The same inside of a transaction."""
        current = current_release(session, self._base)
        return bool(judged["release"] == (current.id if current is not None else None))

    def remeasure(self, digest: str, judged: Mapping[str, Any]) -> Figures:
        """The gap's stored prompts under the release to be, which has the newcomer beside the experts of another."""
        from services.trainer_worker.expert_creation.remeasuring import Closing, remeasure, stored_prompts

        assert self._spec.gap is not None
        with self._context.sessions() as session:
            prompts = stored_prompts(session, self._spec.gap)
        current, storage = self._current(), self._context.storage
        calibration = current.calibration_digest if current is not None else None
        closing = Closing(
            present=Candidate.of(current, storage) if current is not None else None,
            release=self.maker.candidate(current, self._wish.name, digest),
            newcomer=self._wish.name,
            known_loss=judged["figures"]["known_loss"],
            calibration=storage.artifact(calibration) if calibration is not None else None,
        )
        measured = remeasure(prompts, closing, self._loaded(), should_stop=self._context.should_stop)
        return measured | {"beside": judged["release"]}

    def make_first_router(self) -> None:
        """Where no release is active: before the transaction that ends the job, because it takes a while."""
        if self._current() is None:
            _ = self.maker.default_router

    def activation(self, judged: Mapping[str, Any]) -> Activation | None:
        """As any job's that activates what it makes, so that the gate asks once more when it does."""
        if not self._spec.activate:
            return None
        stored = judged["judgement"]
        judgement = (
            Judgement(
                stored["active"],
                Evaluation.model_validate(stored["reference"]),
                Evaluation.model_validate(stored["evaluation"]),
            )
            if stored is not None
            else None
        )
        return Activation(tolerance_of(self._context.settings, self._spec.tolerance), judgement)

    def publish_reports(self, about: Figures) -> dict[str, str]:
        """The data and the evaluation as artifacts; their digests by name."""
        storage = self._context.storage
        with storage.stage() as staged:
            text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
            (staged / "evaluation.json").write_text(text, encoding="utf-8")
            return {"data": storage.publish(self._data.folder), "report": storage.publish(staged)}

    def _current(self) -> ReleaseRow | None:
        with self._context.sessions() as session:
            return current_release(session, self._base)

    def _training_folder(self, rank: int) -> Path:
        """The job's own, where whoever looks into a failed job finds checkpoints, unless several ranks are tried."""
        work = self._context.folder.work
        return work / f"rank-{rank}" if self._spec.search else work

    def _loaded(self) -> "LoadedBase":
        from services.shared.modeling.base_model import load_base_model

        return load_base_model(self._context.settings)


def _stored(judgement: Judgement | None) -> Figures | None:
    return (
        asdict(judgement)
        | {
            "reference": judgement.reference.model_dump(),
            "evaluation": judgement.evaluation.model_dump(),
        }
        if judgement is not None
        else None
    )
