"""What an evaluation is of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from services.shared.modeling.trunk_evidence import DiscriminantRows
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.trainer_worker.evaluation.held_out import HeldOutText
from services.trainer_worker.evaluation.subject import Subject

if TYPE_CHECKING:
    from services.shared.training_text import Example


@dataclass(frozen=True)
class Study:
    """A release, the text that it is read on, and what `spec` asks for.

    `training` is what peers are trained on, by domain in the order of the gate's columns, and `fresh_model` loads the
    bare base model anew for a peer to take apart; `trunk_rows` are the evidence of all columns by tap layer.
    """

    subject: Subject
    text: HeldOutText
    spec: EvaluationJobSpec
    fresh_model: Callable[[], PreTrainedModel]
    training: "Mapping[str, Sequence[Example]]" = field(default_factory=dict)
    trunk_rows: Mapping[int, DiscriminantRows] = field(default_factory=dict)
