"""Whether a newcomer helps: the present mixture and the one with it read the same documents.

It helps where the whole paired interval of its gain is above zero, and it harms where another domain loses more than is
tolerated: on the documents of the active release's evaluation, as the gate of every activation reads them, or else on
the exemplars that the experts carry. Those are of their training text, so what they lose there is rather too much.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from services.shared.database.rows import ReleaseRow
from services.shared.errors import JobFailed
from services.shared.modeling.base_model import LoadedBase
from services.shared.publishing import EXEMPLARS_FILE
from services.shared.release_evaluation import Evaluation, loss_changes
from services.shared.training_text import Example, read_examples
from services.trainer_worker.activation_gate import Candidate, Judgement
from services.trainer_worker.demo.intervals import paired_difference, wilson
from services.trainer_worker.evaluation.figures import Interval, difference
from services.trainer_worker.expert_creation.documents import Documents
from services.trainer_worker.expert_creation.preparation import LEAST_HELD_OUT
from services.trainer_worker.expert_creation.reading import Reading, read_base, read_release

_OWN: Final = "held out of the data"
"""A space is in no expert's name."""
_NUM_HELD_OUT: Final = 200
_NUM_EXEMPLARS: Final = 32
_KNOWN_SHARE: Final = 95
"""Per cent of the exemplars whose loss is taken to be known ground."""


@dataclass(frozen=True)
class Verdict:
    """What was measured, as the report tells it, and why the newcomer must not be released: nothing, if it may.

    `by_exemplars` are the losses of other domains before and after on the experts' exemplars.
    """

    figures: dict[str, Any]
    reasons: tuple[str, ...]
    by_exemplars: Judgement | None


@dataclass(frozen=True)
class Trial:
    """Who is to be judged: `newcomer` is the name of the expert that `candidate` has beside those of `current`."""

    newcomer: str
    current: ReleaseRow | None
    present: Candidate | None
    candidate: Candidate
    judgement: Judgement | None
    tolerance: float


def judge_newcomer(
    trial: Trial,
    held_out: Sequence[Example],
    base: LoadedBase,
    *,
    max_length: int,
    completion_only: bool,
    should_stop: Callable[[], bool],
) -> Verdict:
    """Read and compare. Raises TrainingStopped within a batch of `should_stop()`."""
    exemplars = exemplars_of(trial.present)
    documents = Documents.of(
        {_OWN: held_out[:_NUM_HELD_OUT], **exemplars}, base, max_length=max_length, completion_only=completion_only
    )
    before = (
        read_base(base, documents, should_stop)
        if trial.present is None
        else read_release(base, trial.present, documents, should_stop)
    )
    after = read_release(base, trial.candidate, documents, should_stop)
    # Those without a counted token say nothing, and nothing but them would be drawn now and then.
    own_B = documents.of_group(_OWN) & (before.tokens_B > 0)
    if own_B.sum() < LEAST_HELD_OUT:
        raise JobFailed(
            f"Only {own_B.sum()} of the held-out examples have a completion within their first {max_length} tokens, "
            f"and {LEAST_HELD_OUT} are needed: give more or shorter ones, or a longer max_length.",
            param="hyperparameters.max_length",
            code="nothing_to_judge",
        )
    gain = difference(before.totals(own_B), after.totals(own_B))
    judgement = _by_exemplars(trial.current, documents, before, after)
    others = _others(trial.judgement or judgement, trial.tolerance)
    figures = {
        "num_documents": int(own_B.sum()),
        "loss_before": _loss(before, own_B),
        "loss_after": _loss(after, own_B),
        "gain": asdict(gain),
        "improvement_rate": float((after.losses() < before.losses())[own_B].mean()),
        "accuracy": _accuracy(documents, before, after, own_B),
        "newcomers_share": float(after.shares_BE[own_B, after.experts.index(trial.newcomer)].mean()),
        "other_domains": others,
        "other_domains_read": _how_read(trial, judgement),
        "tolerance": trial.tolerance,
        "known_loss": float(np.percentile(after.losses()[~own_B], _KNOWN_SHARE)) if exemplars else None,
    }
    return Verdict(figures, tuple(_reasons(gain, others, trial.tolerance)), judgement)


def exemplars_of(release: Candidate | None) -> dict[str, list[Example]]:
    """Some texts of every expert that carries them, by its name; never none of one that is named."""
    found: dict[str, list[Example]] = {}
    for name, folder in release.experts if release is not None else ():
        file = folder / EXEMPLARS_FILE
        if file.exists() and (texts := read_examples(file, filename=EXEMPLARS_FILE)[:_NUM_EXEMPLARS]):
            found[name] = [Example(one.text, None) for one in texts]
    return found


def _by_exemplars(
    current: ReleaseRow | None, documents: Documents, before: Reading, after: Reading
) -> Judgement | None:
    names = documents.groups[1:]
    if current is None or not names:
        return None
    losses = [{name: _loss(reading, documents.of_group(name)) for name in names} for reading in (before, after)]
    data = f"{_NUM_EXEMPLARS} exemplars of each expert of {current.id}"
    first, second = (Evaluation(losses=of_reading, data=data) for of_reading in losses)
    return Judgement(current.number, first, second)


def _others(judgement: Judgement | None, tolerance: float) -> dict[str, dict[str, Any]]:
    changes = loss_changes(judgement.reference, judgement.evaluation) if judgement is not None else []
    return {
        one.domain: {
            "before": one.before,
            "after": one.after,
            "change": one.difference,
            "is_regression": one.is_regression(tolerance),
        }
        for one in changes
    }


def _how_read(trial: Trial, by_exemplars: Judgement | None) -> str:
    if trial.judgement is not None:
        return trial.judgement.reference.data
    return by_exemplars.reference.data if by_exemplars is not None else "there are none"


def _accuracy(documents: Documents, before: Reading, after: Reading, own_B: Any) -> dict[str, Any] | None:
    """Of greedy answers, exact match; None where no document ends in a completion."""
    checkable_B = own_B & documents.is_checkable_B
    num = int(checkable_B.sum())
    if not num:
        return None
    right_before, right = before.is_right_B[checkable_B], after.is_right_B[checkable_B]
    return {
        "num_items": num,
        "before": asdict(wilson(int(right_before.sum()), num)),
        "after": asdict(wilson(int(right.sum()), num)),
        "gain": asdict(paired_difference(right.tolist(), right_before.tolist())),
    }


def _reasons(gain: Interval, others: Mapping[str, Mapping[str, Any]], tolerance: float) -> list[str]:
    reasons = []
    if not gain.low > 0:
        reasons.append(
            f"its gain on held-out data is not above zero: {gain.value:+.4f} nats per token, 95 % interval "
            f"[{gain.low:+.4f}, {gain.high:+.4f}]"
        )
    worse = {name: one for name, one in others.items() if one["is_regression"]}
    if worse:
        told = ", ".join(f"{name} {one['change']:+.4f}" for name, one in worse.items())
        reasons.append(f"other domains lose more than the {tolerance:g} nats per token that are tolerated: {told}")
    return reasons


def _loss(reading: Reading, chosen_B: Any) -> float:
    return float(reading.nats_B[chosen_B].sum() / max(int(reading.tokens_B[chosen_B].sum()), 1))
