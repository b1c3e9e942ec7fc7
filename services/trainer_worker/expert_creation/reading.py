"""Documents read under the base model or under a release, in one pass: losses, and whether greedy answers are right.

Greedy decoding writes a completion exactly if each of its tokens, the end of text included, is the likeliest after
those before it. Gates follow the text, so they are the same then: no generation is needed to know.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.shared.modeling.base_model import LoadedBase
from services.trainer_worker.activation_gate import Candidate
from services.trainer_worker.evaluation.figures import Totals
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.evaluation.systems import BATCH, routed
from services.trainer_worker.expert_creation.documents import Documents, Mask
from services.trainer_worker.progress import TrainingStopped
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble, next_token_nats

Logits = Callable[[slice, Tensor], Tensor]
"""logits_BTV of the documents of a slice, from their token ids."""


@dataclass(frozen=True)
class Reading:
    """Of every document the summed nats and the number of its counted tokens, whether its greedy answer is right, and
    the mean weight of every expert over its tokens, in the order of `experts`."""

    nats_B: npt.NDArray[np.float64]
    tokens_B: npt.NDArray[np.int64]
    is_right_B: Mask
    experts: tuple[str, ...]
    shares_BE: npt.NDArray[np.float64]

    def losses(self) -> npt.NDArray[np.float64]:
        """Nats per token of every document, [B]; 0 of one without counted tokens."""
        loss_B: npt.NDArray[np.float64] = self.nats_B / np.maximum(self.tokens_B, 1)
        return loss_B

    def totals(self, chosen_B: Mask) -> Totals:
        """Of the chosen documents, as one group."""
        num = int(chosen_B.sum())
        return Totals(self.nats_B[chosen_B], self.tokens_B[chosen_B], np.zeros(num, dtype=np.int64))


def read_base(base: LoadedBase, documents: Documents, should_stop: Callable[[], bool]) -> Reading:
    """Under the base model alone. Raises TrainingStopped within a batch of `should_stop()`."""

    def logits(_: slice, token_ids_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = base.model(input_ids=token_ids_BT, use_cache=False).logits
        return logits_BTV

    return _read(base, documents, logits, (), np.zeros((len(documents), 0)), should_stop)


def read_release(
    base: LoadedBase, release: Candidate, documents: Documents, should_stop: Callable[[], bool]
) -> Reading:
    """Under the mixture of a release. Raises TrainingStopped within a batch of `should_stop()`."""
    subject = Subject(base, release.experts, release.router_dir, release.graph_dir)
    weights_BTE = routed(subject.scorer(), base)(documents.windows).float()
    in_text_BT = torch.arange(weights_BTE.shape[1]) < documents.windows.lengths_B[:, None]
    shares_BE = (weights_BTE * in_text_BT[..., None]).sum(dim=1) / documents.windows.lengths_B[:, None]
    with ExpertEnsemble.load(base, release.experts) as ensemble:

        def logits(part: slice, token_ids_BT: Tensor) -> Tensor:
            weights = weights_BTE[part, : token_ids_BT.shape[1]]
            return ensemble.logits(token_ids_BT, weights, only_speaking=True)

        names = tuple(name for name, _ in release.experts)
        return _read(base, documents, logits, names, shares_BE.double().numpy(), should_stop)


def _read(
    base: LoadedBase,
    documents: Documents,
    logits: Logits,
    experts: tuple[str, ...],
    shares_BE: npt.NDArray[np.float64],
    should_stop: Callable[[], bool],
) -> Reading:
    nats_B = np.zeros(len(documents))
    is_right_B = np.zeros(len(documents), dtype=np.bool_)
    with torch.no_grad():
        for start in range(0, len(documents), BATCH):
            if should_stop():
                raise TrainingStopped("the reading was stopped")
            part = slice(start, start + BATCH)
            token_ids_BT = documents.token_ids(part).to(base.device)
            logits_BTV = logits(part, token_ids_BT)
            length = token_ids_BT.shape[1] - 1
            nats_BT = next_token_nats(logits_BTV, token_ids_BT).double().cpu().numpy()
            hits_BT = (logits_BTV[:, :-1].argmax(dim=-1) == token_ids_BT[:, 1:]).cpu().numpy()
            nats_B[part] = (nats_BT * documents.counted_BT[part, :length]).sum(axis=1)
            is_right_B[part] = (hits_BT | ~documents.answer_BT[part, :length]).all(axis=1)
    return Reading(
        nats_B=nats_B,
        tokens_B=documents.counted_BT.sum(axis=1),
        is_right_B=is_right_B & documents.is_checkable_B,
        experts=experts,
        shares_BE=shares_BE,
    )
