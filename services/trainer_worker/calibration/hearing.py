"""What the routers of a release and of smaller ones make of prompts: features, and whose domain each seems to be of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.calibration import available_features
from services.shared.modeling.confidence_features import stacked, window_features
from services.shared.modeling.release_scorer import ReleaseScorer
from services.trainer_worker.calibration.prompts import Prompts
from services.trainer_worker.evaluation.systems import router_scores

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Heard:
    """Of N prompts after their last tokens: features_NF in the order of `available_features`, and the mean scores over
    the window, shares_NC."""

    features_NF: Floats
    shares_NC: Floats


def hear_prompts(
    scorer: ReleaseScorer, base: LoadedBase, prompts: Prompts, rows: Sequence[int], *, window: int
) -> Heard:
    """The prompts of these rows under a release's router."""
    names = available_features(scorer)
    features_NF, shares_NC = np.empty((len(rows), len(names))), np.empty((len(rows), len(scorer.columns)))
    for place, row in enumerate(rows):
        ids_T = prompts.windows.token_ids_BT[row, : int(prompts.cuts_B[row])]
        scores_TC, log_evidence_TC = hear(scorer, base, ids_T)
        features_NF[place] = stacked(window_features(scores_TC, log_evidence_TC, window=window), names)[-1]
        shares_NC[place] = scores_TC[-window:].mean(axis=0)
    return Heard(features_NF, shares_NC)


def hear(scorer: ReleaseScorer, base: LoadedBase, ids_T: Tensor) -> tuple[Floats, Floats | None]:
    """Scores and log-evidence after every token of one text, [T, C]; no evidence of a router that hears states."""
    if scorer.tap_layer is not None:
        return router_scores(scorer, base, ids_T), None
    return scorer.advance_with_evidence(scorer.start(), ids_T.tolist())
