"""Losses, the share of the oracle's gain that a system keeps, and their paired bootstrap intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from services.trainer_worker.evaluation.systems import Readings
from services.trainer_worker.evaluation.windows import AFTER_SWITCH, Windows

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval over windows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Totals:
    """Summed nats and counted tokens per window, grouped by domain: all that a resample needs."""

    nats_B: np.ndarray
    tokens_B: np.ndarray
    groups_B: np.ndarray

    def loss(self, picks_RB: np.ndarray) -> np.ndarray:
        """Mean over domains of nats per token, for each row of window indices, [R].

        Rows are those of `resamples`: in the place of every window stands one of its own domain.
        """
        per_group = []
        for group in np.unique(self.groups_B):
            picks_RM = picks_RB[:, self.groups_B == group]
            nats_R = self.nats_B[picks_RM].sum(axis=1)
            tokens_R = self.tokens_B[picks_RM].sum(axis=1)
            per_group.append(_share(nats_R, tokens_R.astype(np.float64)))
        return np.asarray(np.mean(per_group, axis=0))


def totals(
    readings: Readings, windows: Windows, *, by_domain: bool, after_switch: bool = False, skip: int = 0
) -> Totals:
    """Totals over all predicted tokens but the first `skip`, or over the first 16 after a switch."""
    counted_BT = windows.counted
    counted_BT[:, :skip] = False
    if after_switch and windows.switch_at is not None:
        positions_T = np.arange(1, counted_BT.shape[1] + 1)
        counted_BT = counted_BT & (positions_T >= windows.switch_at) & (positions_T < windows.switch_at + AFTER_SWITCH)
    groups_B = windows.first_domains if by_domain else np.zeros(len(windows), dtype=np.int64)
    return Totals((readings.nats_BT * counted_BT).sum(axis=1), counted_BT.sum(axis=1), groups_B)


def resamples(groups_B: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Window indices, [1 + R, B]: the windows as they are, then drawn with replacement within their domain."""
    generator = np.random.default_rng(seed)
    picks_RB = np.tile(np.arange(len(groups_B)), (1 + NUM_RESAMPLES, 1))
    for group in np.unique(groups_B):
        members = np.flatnonzero(groups_B == group)
        picks_RB[1:, members] = generator.choice(members, size=(NUM_RESAMPLES, len(members)))
    return picks_RB


def interval(values_R: np.ndarray) -> Interval:
    """The first entry with the spread of the others."""
    low, high = np.percentile(values_R[1:], [2.5, 97.5])
    return Interval(float(values_R[0]), float(low), float(high))


def compare(systems: Mapping[str, Totals]) -> dict[str, dict[str, Interval]]:
    """Loss, `kept` = (base - system) / (base - oracle), and difference to the router, per system; all paired."""
    picks_RB = resamples(systems["base"].groups_B)
    losses = {name: total.loss(picks_RB) for name, total in systems.items()}
    base_R, oracle_R = losses["base"], losses["oracle"]
    return {
        name: {"loss": interval(loss_R), "kept": interval(_share(base_R - loss_R, base_R - oracle_R))}
        for name, loss_R in losses.items()
    }


def _share(part_R: np.ndarray, whole_R: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to have a share of."""
    share_R = np.full_like(whole_R, np.nan)
    np.divide(part_R, whole_R, out=share_R, where=whole_R != 0)
    return share_R


def difference(first: Totals, second: Totals) -> Interval:
    """Paired difference of losses, first minus second."""
    picks_RB = resamples(first.groups_B)
    return interval(first.loss(picks_RB) - second.loss(picks_RB))


def over_seeds_interval(values_SR: np.ndarray) -> Interval:
    """The mean over seeds, each with its resamples, [S, 1 + R], and its spread over both: seeds are drawn as well."""
    num_seeds, num_values = values_SR.shape
    drawn_RS = np.random.default_rng(0).multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_values)
    drawn_RS[0] = 1
    return interval((drawn_RS * values_SR.T).mean(axis=1))


def domain_losses(readings: Readings, windows: Windows) -> list[float]:
    """Nats per token on each domain, in order."""
    total = totals(readings, windows, by_domain=True)
    return [
        float(total.nats_B[total.groups_B == group].sum() / total.tokens_B[total.groups_B == group].sum())
        for group in np.unique(total.groups_B)
    ]


def experts_per_token(readings: Readings, windows: Windows) -> float:
    """How many experts read a token on average."""
    active_BT = (readings.weights_BTE > 0).sum(axis=2)[:, :-1]
    return float(active_BT[windows.counted].mean())


def token_accuracy(readings: Readings, windows: Windows) -> float:
    """Share of tokens whose largest weight belongs to their own domain's expert."""
    best_BT = readings.weights_BTE.argmax(axis=2)
    spoke_BT = readings.weights_BTE.sum(axis=2) > 0
    right_BT = (best_BT == windows.domains_BT.numpy()) & spoke_BT
    return float(right_BT[:, :-1][windows.counted].mean())
