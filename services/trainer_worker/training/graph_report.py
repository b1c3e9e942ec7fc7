"""What a cooperation graph is worth beside its controls (DESIGN D4), and whether that is enough."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np

from services.shared.modeling.cooperation_graph import CooperationGraph

NO_GRAPH: Final = "no graph"
_NUM_RESAMPLES: Final = 2000
_LEAST_GAIN: Final = 0.01
"""Nats per token: less is not worth one more thing that can go wrong."""
_CONTROLS: Final = frozenset({NO_GRAPH, "scalar", "random", "shuffled"})
_LARGEST_HARM: Final = 0.002
"""Nats per token that whole documents may lose, with 97.5 % certainty: requests are read from their beginning."""

Gain = tuple[float, float, float]
"""Nats per token, with the ends of the 95 % interval."""


@dataclass(frozen=True)
class Losses:
    """Nats per token of each spliced test document and of each whole one."""

    spliced_B: np.ndarray
    whole_B: np.ndarray


@dataclass(frozen=True)
class Reading:
    """One network on the test documents. `control` names the reading that its gain is over."""

    name: str
    seed: int
    losses: Losses
    graph: CooperationGraph
    control: str = NO_GRAPH


@dataclass(frozen=True)
class GraphVariant:
    """One row of the report. `gain` is its control's loss minus its own, with its 95 % interval over documents."""

    name: str
    seed: int
    control: str
    loss: float
    gain: float
    gain_low: float
    gain_high: float
    gain_on_whole: float
    sparsity: float
    largest_edge: float


@dataclass(frozen=True)
class JointGains:
    """A graph trained together with `parts`, over the release as it is, and over that training without a graph.

    Each on spliced and on whole documents. `constants` are the filter's (stickiness, temper) per seed, with a graph
    and without one, where the router was trained.
    """

    parts: tuple[str, ...]
    gain: tuple[Gain, Gain]
    gain_without_graph: tuple[Gain, Gain]
    gain_of_graph: tuple[Gain, Gain]
    sparsity: float
    constants: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class RoutedToken:
    """A token of a test document and the weights that it is read under, without the graph and with it; base last."""

    sample: int
    position: int
    token_id: int
    weights_C: tuple[float, ...]
    with_graph_C: tuple[float, ...]


@dataclass(frozen=True)
class GraphReport:
    """The learned graph, its controls, and whether it is worth having.

    `gains_over[control]` is the control's loss minus the learned graphs' over the same spliced documents and seeds;
    `gain_on_whole` is that over no graph on whole documents, read from their beginning. `gains_at_top_k[k]` is that of
    graphs learned with at most k experts per token over no graph under the same bound. Intervals resample seeds and
    documents. `graphs` are the learned ones of all seeds, the first being `graph`; `history` is the first seed's from
    before the training to its end, A_EE per epoch.
    """

    graph: CooperationGraph
    variants: tuple[GraphVariant, ...]
    gains_over: Mapping[str, Gain]
    gain_on_whole: Gain
    graphs: tuple[CooperationGraph, ...] = ()
    gains_at_top_k: Mapping[int, Gain] = field(default_factory=dict)
    joint: JointGains | None = None
    history: tuple[np.ndarray, ...] = ()
    examples: tuple[RoutedToken, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share of edges that are exactly zero, mean over seeds."""
        return float(np.mean([graph.sparsity for graph in self.graphs or (self.graph,)]))

    @property
    def beats_controls(self) -> bool:
        """True when it gains 0.01 nats over no graph, beats every control beyond doubt and harms no whole document."""
        if not self.gains_over.keys() >= _CONTROLS:
            return False
        is_certain = all(low > 0 for _, low, _ in self.gains_over.values())
        is_harmless = self.gain_on_whole[1] > -_LARGEST_HARM
        return is_certain and is_harmless and self.gains_over[NO_GRAPH][0] >= _LEAST_GAIN

    def as_json(self) -> dict[str, object]:
        """For report files; the graph itself is an artifact."""
        return {
            "experts": list(self.graph.experts),
            "variants": [asdict(variant) for variant in self.variants],
            "gains_over": {name: list(gain) for name, gain in self.gains_over.items()},
            "gain_on_whole_documents": list(self.gain_on_whole),
            "gains_at_top_k": {str(k): list(gain) for k, gain in self.gains_at_top_k.items()},
            "joint": asdict(self.joint) if self.joint else None,
            "adjacency_by_seed": [graph.adjacency_EE.tolist() for graph in self.graphs],
            "sparsity": self.sparsity,
            "beats_controls": self.beats_controls,
        }


class Readings:
    """All readings of a study, by name and seed."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds
        self._all: list[Reading] = []

    def add(self, reading: Reading) -> None:
        """One more."""
        self._all.append(reading)

    def has(self, name: str) -> bool:
        """Whether any network of this name was read."""
        return any(reading.name == name for reading in self._all)

    def gain(self, name: str, over: str) -> Gain:
        """`over`'s loss minus `name`'s on spliced documents, over seeds and documents."""
        return paired_gain(self._spliced(over) - self._spliced(name))

    def gain_on_whole(self, name: str, over: str) -> Gain:
        """The same on whole documents."""
        return paired_gain(self._whole(over) - self._whole(name))

    def gains(self, name: str, over: str) -> tuple[Gain, Gain]:
        """On spliced and on whole documents."""
        return self.gain(name, over), self.gain_on_whole(name, over)

    def variants(self) -> tuple[GraphVariant, ...]:
        """A row for each."""
        return tuple(self._variant(reading) for reading in self._all)

    def _variant(self, reading: Reading) -> GraphVariant:
        control = self._of(reading.control, reading.seed).losses
        gain, low, high = paired_gain((control.spliced_B - reading.losses.spliced_B)[None])
        return GraphVariant(
            name=reading.name,
            seed=reading.seed,
            control=reading.control,
            loss=float(reading.losses.spliced_B.mean()),
            gain=gain,
            gain_low=low,
            gain_high=high,
            gain_on_whole=float((control.whole_B - reading.losses.whole_B).mean()),
            sparsity=reading.graph.sparsity,
            largest_edge=float(np.abs(reading.graph.adjacency_EE).max()),
        )

    def _of(self, name: str, seed: int) -> Reading:
        """That of the seed; what needs no training is the same for all."""
        named = [reading for reading in self._all if reading.name == name]
        return next((reading for reading in named if reading.seed == seed), named[0])

    def _spliced(self, name: str) -> np.ndarray:
        return np.stack([self._of(name, seed).losses.spliced_B for seed in self._seeds])

    def _whole(self, name: str) -> np.ndarray:
        return np.stack([self._of(name, seed).losses.whole_B for seed in self._seeds])


def paired_gain(differences_SB: np.ndarray) -> Gain:
    """Mean of paired differences, seeds by documents, with its 95 % bootstrap interval over both."""
    generator = np.random.default_rng(0)
    # How often each seed and each document is drawn, in shares: a resample's mean is a product, not a loop.
    seeds_RS, documents_RB = (
        generator.multinomial(number, np.full(number, 1.0 / number), size=_NUM_RESAMPLES) / number
        for number in differences_SB.shape
    )
    means_R = ((seeds_RS @ differences_SB) * documents_RB).sum(axis=1)
    low, high = np.percentile(means_R, [2.5, 97.5])
    return float(differences_SB.mean()), float(low), float(high)
