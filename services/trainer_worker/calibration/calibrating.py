"""A release's calibration and how good it is: fitted with every domain's expert left out in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from services.shared.errors import InvalidDataset
from services.shared.modeling.calibration import Calibration, KnownDomain, available_features
from services.shared.schemas.calibration import CalibrationJobSpec
from services.shared.vocabulary import BASE
from services.trainer_worker.calibration.detection import Detection, Doubt, detection, summary
from services.trainer_worker.calibration.fitting import (
    Fit,
    conformal_threshold,
    expected_calibration_error,
    fit,
    reliability,
)
from services.trainer_worker.calibration.hearing import Heard, hear_prompts
from services.trainer_worker.calibration.losses import Losses
from services.trainer_worker.calibration.prompts import Prompts
from services.trainer_worker.evaluation.subject import Subject

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Figures = dict[str, Any]

CONFIDENCE: Final = "confidence"
_WITH_LOSSES: Final = "confidence, with the prompt's losses"
_GATE_SCORE: Final = "maximum gate score"
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
FIT: Final = 0
THRESHOLD: Final = 1
TEST: Final = 2
_SHARES: Final = (0.5, 0.25, 0.25)
_LEAST_DOCUMENTS: Final = 8
_MOST_OTHERS: Final = 8
"""Domains that are left out beside the unknown one when detection is measured: more cost time and teach little."""


@dataclass(frozen=True)
class Calibrated:
    """The calibration and what was measured on documents that it was not fitted on."""

    calibration: Calibration
    figures: Figures


class Calibrating:
    """One release, its held-out documents and their losses.

    Detection of unknown domains is also measured by the numbers `doubts`, and by regressions that read some of them
    beside the router's features: `variants` name those.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Prompts,
        losses: Losses,
        spec: CalibrationJobSpec,
        *,
        doubts: Mapping[str, Doubt] = _NOTHING,
        variants: Mapping[str, Sequence[str]] = _NOTHING,
    ) -> None:
        self._subject = subject
        self._prompts = prompts
        self._losses = losses
        self._spec = spec
        self._names = [name for name, _ in subject.experts]
        self._parts_B = _parts(prompts.columns, spec.seed)
        self._heard: dict[tuple[int, ...], Heard] = {}
        self._domains = [column for column in np.unique(prompts.columns).tolist() if column < len(self._names)]
        self._features = available_features(subject.scorer())
        self._doubts = {
            "base perplexity": Doubt(losses.base_prompt, losses.base_prompt),
            "mixture perplexity": Doubt(losses.routed_prompt, losses.left_out_prompt),
            "routed gain": Doubt(
                losses.routed_prompt - losses.base_prompt, losses.left_out_prompt - losses.base_prompt
            ),
            **doubts,
        }
        self._variants = {CONFIDENCE: (), _WITH_LOSSES: ("base perplexity", "mixture perplexity"), **variants}
        known_fit_B = self._parts_B == FIT
        self._highest = float(np.quantile(losses.excess[known_fit_B], spec.range_share))

    def run(self) -> Calibrated:
        """Fit, set the threshold, measure. Raises InvalidDataset where every loss or none is in range."""
        columns_B, parts_B = self._prompts.columns, self._parts_B
        whole_BF = self._hear(()).features_NF
        of_expert_B = columns_B < len(self._names)
        left_BF = np.array([self._hear((column,)).features_NF[row] for row, column in enumerate(columns_B.tolist())])
        fitted = self._fit(
            whole_BF[parts_B == FIT],
            self._in_range[parts_B == FIT],
            left_BF[(parts_B == FIT) & of_expert_B],
            self._in_range_left_out[(parts_B == FIT) & of_expert_B],
        )
        confidence_B, left_out_B = fitted.confidence(whole_BF), fitted.confidence(left_BF)
        threshold = conformal_threshold(confidence_B[(parts_B == THRESHOLD) & self._in_range], self._spec.false_flags)
        calibration = self._calibration(fitted, threshold)
        test_B = parts_B == TEST
        bins = reliability(
            np.r_[confidence_B[test_B], left_out_B[test_B & of_expert_B]],
            np.r_[self._in_range[test_B], self._in_range_left_out[test_B & of_expert_B]],
        )
        figures: Figures = {
            "features": list(calibration.features),
            "highest_excess": self._highest,
            "range_share": self._spec.range_share,
            "threshold": threshold,
            "risk": self._spec.false_flags,
            "false_flags": float((confidence_B[test_B & self._in_range] < threshold).mean()),
            "in_range": {
                "known": float(self._in_range.mean()),
                "left_out": float(self._in_range_left_out[of_expert_B].mean()),
            },
            "ece": expected_calibration_error(bins),
            "reliability": [asdict(one) for one in bins],
            "domains": self._by_domain(confidence_B, left_out_B, threshold),
            "classification": self._classification(confidence_B, threshold),
            "detection": self._detection() if len(self._domains) > 2 else None,
        }
        return Calibrated(calibration, figures)

    @property
    def _in_range(self) -> Bools:
        return self._losses.excess <= self._highest

    @property
    def _in_range_left_out(self) -> Bools:
        return self._losses.excess_left_out <= self._highest

    def _fit(self, known_NF: Floats, known_in_range_N: Bools, left_MF: Floats, left_in_range_M: Bools) -> Fit:
        """Known text and text whose expert is left out weigh the same."""
        in_range = np.r_[known_in_range_N, left_in_range_M]
        if in_range.all() or not in_range.any():
            raise InvalidDataset(
                "The mixture does as well without any of its experts as with it on this text, so there is nothing to "
                "learn of what it does not know. Is the held-out text of the experts' own domains?",
                param="held_out",
            )
        weights = np.r_[np.full(len(known_NF), 0.5 / len(known_NF)), np.full(len(left_MF), 0.5 / len(left_MF))]
        return fit(np.r_[known_NF, left_MF], in_range, weights * len(weights))

    def _calibration(self, fitted: Fit, threshold: float) -> Calibration:
        return Calibration(
            features=self._features,
            means=tuple(fitted.means_F.tolist()),
            scales=tuple(fitted.scales_F.tolist()),
            weights=tuple(fitted.weights_F.tolist()),
            intercept=fitted.intercept,
            window=self._spec.window,
            threshold=threshold,
            false_flags=self._spec.false_flags,
            highest_excess=self._highest,
            range_share=self._spec.range_share,
            states_layer=self._spec.states_layer,
            domains={
                self._name(column): KnownDomain(
                    num_documents=int(rows_B.sum()),
                    routed=float(self._losses.routed[rows_B].mean()),
                    base=float(self._losses.base[rows_B].mean()),
                    highest_excess=float(np.quantile(self._losses.excess[rows_B], self._spec.range_share)),
                )
                for column in np.unique(self._prompts.columns).tolist()
                for rows_B in [self._prompts.columns == column]
            },
        )

    def _by_domain(self, confidence_B: Floats, left_out_B: Floats, threshold: float) -> dict[str, Figures]:
        """Losses, and how many are flagged with their expert and without it."""
        found: dict[str, Figures] = {}
        for column in np.unique(self._prompts.columns).tolist():
            rows_B = self._prompts.columns == column
            unseen_B = rows_B & (self._parts_B == TEST)
            found[self._name(column)] = {
                "documents": int(rows_B.sum()),
                "base": float(self._losses.base[rows_B].mean()),
                "routed": float(self._losses.routed[rows_B].mean()),
                "left_out": float(self._losses.left_out[rows_B].mean()),
                "flagged": float((confidence_B[unseen_B] < threshold).mean()),
                "flagged_left_out": float((left_out_B[unseen_B] < threshold).mean())
                if column < len(self._names)
                else None,
            }
        return found

    def _classification(self, confidence_B: Floats, threshold: float) -> Figures:
        """Right domains among documents that nothing was fitted on; `with_unknown` counts flagged ones as wrong."""
        unseen_B = self._parts_B != FIT
        right_B = self._hear(()).shares_NC.argmax(axis=1) == self._prompts.columns
        return {
            "accuracy": float(right_B[unseen_B].mean()),
            "with_unknown": float((right_B & (confidence_B >= threshold))[unseen_B].mean()),
            "documents": int(unseen_B.sum()),
        }

    def _detection(self) -> Figures:
        """Leave one domain out: its expert is not in the mixture, its text in no fit. Beside plain numbers."""
        by_method: dict[str, dict[str, Detection]] = {}
        confidence, in_range = [], []
        for column in self._domains:
            unknown_B, known_B = self._prompts.columns == column, self._prompts.columns != column
            known_B &= self._parts_B != FIT
            found = {name: self._confidence_without(column, read) for name, read in self._variants.items()}
            confidence += [found[CONFIDENCE][unknown_B], found[CONFIDENCE][known_B]]
            in_range += [self._in_range_left_out[unknown_B], self._in_range[known_B]]
            doubts = {name: 1.0 - confidence_B for name, confidence_B in found.items()}
            doubts[_GATE_SCORE] = -self._hear((column,)).features_NF[:, self._features.index("best_score")]
            doubts |= {name: doubt.without(unknown_B) for name, doubt in self._doubts.items()}
            for method, doubt_B in doubts.items():
                told = detection(doubt_B[unknown_B], doubt_B[known_B], seed=self._spec.seed)
                by_method.setdefault(method, {})[self._name(column)] = told
        bins = reliability(np.concatenate(confidence), np.concatenate(in_range))
        return {
            "ece": expected_calibration_error(bins),
            "methods": {method: summary(found) for method, found in by_method.items()},
        }

    def _confidence_without(self, unknown: int, read: Sequence[str]) -> Floats:
        """Of all documents under the release without one domain's expert, [B]; its text is not read for the fit, which
        is of releases that lack one more, in turn. `read` are doubts that the fit knows beside the features."""
        others = [column for column in self._domains if column != unknown]
        if len(others) > _MOST_OTHERS:
            others = np.random.default_rng([self._spec.seed, unknown]).permutation(others)[:_MOST_OTHERS].tolist()
        known, known_in_range, left, left_in_range = [], [], [], []
        columns_B, is_fit_B = self._prompts.columns, self._parts_B == FIT
        for other in others:
            features_BF = self._known_of((unknown, other), read)
            known_B = is_fit_B & (columns_B != unknown) & (columns_B != other)
            left_B = is_fit_B & (columns_B == other)
            known.append(features_BF[known_B])
            known_in_range.append(self._in_range[known_B])
            left.append(features_BF[left_B])
            left_in_range.append(self._in_range_left_out[left_B])
        parts = [np.concatenate(part) for part in (known, known_in_range, left, left_in_range)]
        return self._fit(parts[0], parts[1], parts[2], parts[3]).confidence(self._known_of((unknown,), read))

    def _known_of(self, left_out: tuple[int, ...], read: Sequence[str]) -> Floats:
        """Features of all prompts under the release without these experts, and these doubts, [B, F]."""
        is_left_out_B = np.isin(self._prompts.columns, left_out)
        doubts = [self._doubts[name].without(is_left_out_B) for name in read]
        return np.column_stack([self._hear(tuple(sorted(left_out))).features_NF, *doubts])

    def _hear(self, left_out: tuple[int, ...]) -> Heard:
        """All prompts under the release without the experts of these columns; the base's column leaves nobody out."""
        gone = tuple(column for column in left_out if column < len(self._names))
        if gone not in self._heard:
            scorer = self._subject.scorer(without=[self._names[column] for column in gone])
            rows = range(len(self._prompts))
            self._heard[gone] = hear_prompts(scorer, self._subject.base, self._prompts, rows, window=self._spec.window)
        return self._heard[gone]

    def _name(self, column: int) -> str:
        return self._names[column] if column < len(self._names) else BASE


def _parts(columns_B: Ints, seed: int) -> Ints:
    """Which documents are for the fit, for the threshold and for the test: every domain's, at random."""
    parts_B = np.empty_like(columns_B)
    for column in np.unique(columns_B).tolist():
        rows = np.flatnonzero(columns_B == column)
        if len(rows) < _LEAST_DOCUMENTS:
            raise InvalidDataset(
                f"A calibration needs {_LEAST_DOCUMENTS} documents of every domain that can be cut into a prompt and "
                f"what follows it; one has {len(rows)}.",
                param="held_out",
            )
        bounds = np.round(np.cumsum(_SHARES[:-1]) * len(rows)).astype(int)
        for part, chosen in enumerate(np.split(np.random.default_rng([seed, column]).permutation(rows), bounds)):
            parts_B[chosen] = part
    return parts_B
