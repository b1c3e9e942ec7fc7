"""The processes that train one expert together, seen from one of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    """This one is number `index` of `count`; the first one writes, reports and decides for all.

    Every method but `is_first` is called by all of them in the same order, and waits for the others. Alone they cost
    nothing.
    """

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """True in the one that writes, reports and decides."""
        return self.index == 0

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """The sum of each number over all processes: float64, the same to the bit in all of them."""
        if self.count == 1:
            return numbers
        import torch
        from accelerate import PartialState
        from accelerate.utils import gather

        mine_1N = torch.tensor([numbers], dtype=torch.float64, device=PartialState().device)
        # Gathered and then added in one order: a reduction may add in another one in each process.
        return tuple(gather(mine_1N).cpu().sum(dim=0).tolist())

    def agree(self, *, on: bool) -> bool:
        """What the first one says."""
        return bool(self.sums(on if self.is_first else 0)[0])

    def wait(self) -> None:
        """Until all of them have come here."""
        self.sums(0)


ALONE = Processes()
