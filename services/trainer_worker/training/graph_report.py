"""What a cooperation graph is worth beside its controls (DESIGN D4), and whether that is enough."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np

from services.shared.modeling.cooperation_graph import CooperationGraph

_NUM_RESAMPLES: Final = 2000
_LEAST_GAIN: Final = 0.01
"""Nats per token: less is not worth one more thing that can go wrong."""
_CONTROLS: Final = frozenset({"no graph", "scalar", "random"})
_LARGEST_HARM: Final = 0.002
"""Nats per token that whole documents may lose, with 97.5 % certainty: requests are read from their beginning."""

Gain = tuple[float, float, float]
"""Nats per token, with the ends of the 95 % interval."""


@dataclass(frozen=True)
class GraphVariant:
    """One row of the report. `gain` is the loss without a graph minus this one's, with its 95 % interval."""

    name: str
    seed: int
    loss: float
    gain: float
    gain_low: float
    gain_high: float
    sparsity: float
    largest_edge: float


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

    `gains_over[control]` is the control's loss minus the learned graphs' mean loss over the same spliced documents and
    seeds, with its 95 % interval; `gain_on_whole` is that over no graph on whole documents, read from their beginning.
    `gains_at_top_k[k]` is that over no graph when both keep at most k experts. `history` is the first seed's graph from
    before the training to its end, A_EE per epoch.
    """

    graph: CooperationGraph
    variants: tuple[GraphVariant, ...]
    gains_over: Mapping[str, Gain]
    gain_on_whole: Gain
    gains_at_top_k: Mapping[int, Gain] = field(default_factory=dict)
    history: tuple[np.ndarray, ...] = ()
    examples: tuple[RoutedToken, ...] = ()

    @property
    def beats_controls(self) -> bool:
        """True when it gains 0.01 nats over no graph, beats every control beyond doubt and harms no whole document."""
        if not self.gains_over.keys() >= _CONTROLS:
            return False
        is_certain = all(low > 0 for _, low, _ in self.gains_over.values())
        is_harmless = self.gain_on_whole[1] > -_LARGEST_HARM
        return is_certain and is_harmless and self.gains_over["no graph"][0] >= _LEAST_GAIN

    def as_json(self) -> dict[str, object]:
        """For report files; the graph itself is an artifact."""
        return {
            "experts": list(self.graph.experts),
            "variants": [asdict(variant) for variant in self.variants],
            "gains_over": {name: list(gain) for name, gain in self.gains_over.items()},
            "gain_on_whole_documents": list(self.gain_on_whole),
            "gains_at_top_k": {str(k): list(gain) for k, gain in self.gains_at_top_k.items()},
            "beats_controls": self.beats_controls,
        }


def compare_graphs(
    losses_B: Mapping[tuple[str, int], np.ndarray],
    graphs: Mapping[tuple[str, int], CooperationGraph],
    seeds: Sequence[int],
    gain_on_whole: Gain,
) -> GraphReport:
    """The report on losses_B per document of each (name, seed); `no graph` has seed 0."""
    plain_B = losses_B["no graph", 0]
    variants = []
    for (name, seed), variant_B in losses_B.items():
        gain, low, high = paired_gain(plain_B - variant_B)
        graph = graphs[name, seed]
        variants.append(
            GraphVariant(
                name=name,
                seed=seed,
                loss=float(variant_B.mean()),
                gain=gain,
                gain_low=low,
                gain_high=high,
                sparsity=graph.sparsity,
                largest_edge=float(np.abs(graph.adjacency_EE).max()),
            )
        )
    learned_B = np.mean([losses_B["learned", seed] for seed in seeds], axis=0)
    controls = {"no graph": plain_B} | {
        name: np.mean([losses_B[name, seed] for seed in seeds], axis=0)
        for name in ("scalar", "random")
        if (name, seeds[0]) in losses_B
    }
    return GraphReport(
        graph=graphs["learned", seeds[0]],  # not the best on the test documents: that would flatter it
        variants=tuple(variants),
        gains_over={name: paired_gain(control_B - learned_B) for name, control_B in controls.items()},
        gain_on_whole=gain_on_whole,
    )


def paired_gain(differences_B: np.ndarray) -> Gain:
    """Mean of paired differences with its 95 % bootstrap interval."""
    picks = np.random.default_rng(0).integers(len(differences_B), size=(_NUM_RESAMPLES, len(differences_B)))
    low, high = np.percentile(differences_B[picks].mean(axis=1), [2.5, 97.5])
    return float(differences_B.mean()), float(low), float(high)
