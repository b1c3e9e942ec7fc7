"""Points of a training's time series."""

from services.trainer_worker.metric_series import MetricSeries
from services.trainer_worker.progress import TrainingProgress


class Clock:
    """Ten milliseconds later whenever it is asked."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 0.01
        return self.seconds


def step(number: int, total: int, **figures: float | None) -> TrainingProgress:
    return TrainingProgress("training", step=number, total_steps=total, **{"loss": 1.0, **figures})  # type: ignore[arg-type]


def test_keeps_every_step_of_a_short_training_and_a_thousand_of_a_long_one() -> None:
    for total, num_kept in ((50, 50), (5_000, 1000), (5_001, 1001)):
        series = MetricSeries(now=Clock())

        points = [series.point(step(number, total)) for number in range(1, total + 1)]

        kept = [point.step for point in points if point is not None]
        assert len(kept) == num_kept
        assert kept[-1] == total


def test_keeps_every_evaluation() -> None:
    series = MetricSeries(now=Clock())

    point = series.point(step(7, 100_000, loss=None, eval_loss=2.5))

    assert point is not None
    assert point.figures["eval_loss"] == 2.5
    assert "loss" not in point.figures


def test_passes_over_phases_without_steps() -> None:
    assert MetricSeries().point(TrainingProgress("loading", step=0, total_steps=0)) is None


def test_tokens_per_second_are_those_since_the_point_before() -> None:
    seconds = iter([0.0, 8.0, 8.0, 10.0, 10.0])
    series = MetricSeries(now=lambda: next(seconds))

    first = series.point(TrainingProgress("training", 1, 10, loss=1.0, num_tokens=100))
    second = series.point(TrainingProgress("training", 2, 10, loss=1.0, num_tokens=300))

    assert first is not None
    assert second is not None
    assert "tokens_per_s" not in first.figures
    assert second.figures["tokens_per_s"] == 100.0


def test_a_kind_adds_figures_of_its_own() -> None:
    point = MetricSeries().point(TrainingProgress("training", 1, 2, figures={"accuracy": 0.5}))

    assert point is not None
    assert point.figures["accuracy"] == 0.5
