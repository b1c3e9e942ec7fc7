"""What is evaluated: a release as the trainer loads it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.release_scorer import ReleaseScorer


@dataclass(frozen=True)
class Subject:
    """`experts` are (name, folder) in the order of the gate's columns."""

    base: LoadedBase
    experts: Sequence[tuple[str, Path]]
    router_dir: Path
    graph_dir: Path | None

    def scorer(self, *, without: Collection[str] = ()) -> ReleaseScorer:
        """Its router; without some of its experts, as a release without them would have it."""
        return ReleaseScorer.load(
            router_dir=self.router_dir,
            graph_dir=self.graph_dir,
            experts=[(name, folder) for name, folder in self.experts if name not in without],
            vocab_size=self.base.tokenizer.vocab_size,
        )
