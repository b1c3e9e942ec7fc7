"""The mean of a prompt's last hidden states, gathered while the prompt is read."""

from torch import Tensor, float64


class PooledStates:
    """A running sum over a prompt's positions; the sum is in float64, so it matters little how the prompt is cut."""

    def __init__(self, num_positions: int) -> None:
        self._num_positions = num_positions
        self._num_added = 0
        self._sum_D: Tensor | None = None

    @property
    def is_complete(self) -> bool:
        """Every position is in."""
        return self._num_added == self._num_positions

    def add(self, states_TD: Tensor) -> None:
        """The next positions' states."""
        sum_D = states_TD.to(device="cpu", dtype=float64).sum(dim=0)
        self._sum_D = sum_D if self._sum_D is None else self._sum_D + sum_D
        self._num_added += len(states_TD)

    def restart(self) -> None:
        """The prompt is read again, unless it was read to its end."""
        if not self.is_complete:
            self._sum_D, self._num_added = None, 0

    def mean(self) -> tuple[float, ...]:
        """[D], once complete."""
        assert self._sum_D is not None
        assert self.is_complete
        return tuple((self._sum_D / self._num_positions).float().tolist())
