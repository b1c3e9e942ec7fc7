"""What the mixture loses on held-out documents, with their own expert and without it: what confidence is about.

A document's *excess* is its loss less that of the best voice for it, the base model or its own domain's expert. Losses
themselves tell little: text differs in how predictable it is by more than an expert makes of it (decision 0012).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.trainer_worker.calibration.prompts import Prompts
from services.trainer_worker.evaluation.staged_reading import StagedReading, num_batches
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.evaluation.systems import Weigh, constant, gated, oracle, routed, scores_of
from services.trainer_worker.evaluation.windows import Windows
from services.trainer_worker.progress import RunControl
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble

Floats = npt.NDArray[np.float64]
NUM_SYSTEMS = 4


@dataclass(frozen=True)
class Losses:
    """Nats per token of every document, [B]: of its prompt (`*_prompt`) and of what follows.

    `left_out` is the mixture's without the document's own expert; for text of no expert it is the mixture's.
    """

    base: Floats
    own: Floats
    routed: Floats
    left_out: Floats
    base_prompt: Floats
    routed_prompt: Floats
    left_out_prompt: Floats

    @property
    def best(self) -> Floats:
        """Of the best voice for each document."""
        return np.minimum(self.base, self.own)

    @property
    def excess(self) -> Floats:
        """The mixture's loss above the best voice's."""
        return self.routed - self.best

    @property
    def excess_left_out(self) -> Floats:
        """The same where the document's own expert is left out."""
        return self.left_out - self.best


def read_losses(subject: Subject, prompts: Prompts, run: RunControl) -> Losses:
    """Read all documents under the base model, their own experts, the mixture, and the mixture without their expert.

    Goes on from what an interrupted reading left in the run's folder.
    """
    names = [name for name, _ in subject.experts]
    windows = prompts.windows
    systems: dict[str, Weigh] = {
        "base": constant([0.0] * len(names)),
        "own": oracle(len(names)),
        "routed": routed(subject.scorer(), subject.base),
        "left-out": _left_out(subject, names),
    }
    with ExpertEnsemble.load(subject.base, subject.experts) as ensemble:
        reading = StagedReading(run, total_steps=len(systems) * num_batches(windows))
        nats = {
            name: reading.read(lambda: ensemble, "calibration", name, windows, weigh).nats_BT
            for name, weigh in systems.items()
        }
    return Losses(
        base=prompts.continuation_loss(nats["base"]),
        own=prompts.continuation_loss(nats["own"]),
        routed=prompts.continuation_loss(nats["routed"]),
        left_out=prompts.continuation_loss(nats["left-out"]),
        base_prompt=prompts.prompt_loss(nats["base"]),
        routed_prompt=prompts.prompt_loss(nats["routed"]),
        left_out_prompt=prompts.prompt_loss(nats["left-out"]),
    )


def _left_out(subject: Subject, names: Sequence[str]) -> Weigh:
    """Every document under the release that lacks its expert; documents of nobody under the release as it is."""

    def weigh(windows: Windows) -> Tensor:
        weights_BTE = torch.zeros(*windows.token_ids_BT.shape, len(names))
        for column in np.unique(windows.first_domains).tolist():
            rows_B = torch.from_numpy(windows.first_domains == column)
            part = Windows(windows.token_ids_BT[rows_B], windows.lengths_B[rows_B], windows.domains_BT[rows_B])
            scorer = subject.scorer(without=names[column : column + 1])
            kept = [index for index in range(len(names)) if index != column]
            part_BTE = torch.zeros(*part.token_ids_BT.shape, len(names))
            part_BTE[..., kept] = gated(scorer, scores_of(scorer, subject.base, part)).float()
            weights_BTE[rows_B] = part_BTE
        return weights_BTE

    return weigh
